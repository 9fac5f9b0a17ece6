from emcore.decode.labels import decode as decode
from emcore.decode.labels import recut as recut
