"""Why a file is refused before anything in it is used: one rule each, with the place where it was broken.

Standard library only, and nothing of f5lab: the process that reads untrusted files imports this and little else.
"""

SHOWN_CHARACTERS = 200

DAMAGED, FOREIGN, OVERRUN, FORMAT = "damaged", "foreign", "overrun", "format"
"""What a rule says about a file: damaged or built to look whole; holds more than tensors and plain values; its tensors
or containers claim more than is stored; a format that is none of ours."""

RULES: dict[str, tuple[str, str]] = {
    "file-kind": (FORMAT, "a regular file, not a device, pipe or socket"),
    "file-magic": (FORMAT, "a zip, safetensors, tar or pickle of torch, told by its first bytes"),
    "file-size": (DAMAGED, "at least the bytes that its own directory names"),
    "file-changed": (DAMAGED, "the same bytes from the first look to the last"),
    "zip-prefix": (DAMAGED, "a zip that begins with its first entry: bytes before it belong to another format"),
    "zip-suffix": (DAMAGED, "a zip that ends with its end record, without a comment"),
    "zip-end": (DAMAGED, "one end record, and a zip64 one that agrees with it"),
    "zip-directory": (DAMAGED, "a central directory that fills exactly the place that the end record names"),
    "zip-count": (OVERRUN, "at most 100,000 entries"),
    "zip-method": (OVERRUN, "stored entries, as torch writes them: a compressed one can be a bomb"),
    "zip-encrypted": (FOREIGN, "entries that are not encrypted"),
    "zip-flags": (DAMAGED, "no flags but those for UTF-8 names and sizes that follow the data"),
    "zip-name": (DAMAGED, "names that torch gives: data.pkl, data/<number>, version, byteorder and its dot files"),
    "zip-folder": (DAMAGED, "one folder around all entries, without .. or a drive"),
    "zip-duplicate": (DAMAGED, "each name once"),
    "zip-local-header": (DAMAGED, "a local header that says what the central directory says"),
    "zip-gap": (DAMAGED, "entries that touch each other, without overlap, gap or hidden bytes"),
    "zip-ratio": (OVERRUN, "as many bytes unpacked as stored"),
    "zip-missing": (DAMAGED, "data.pkl and one entry for every storage"),
    "zip-extra": (DAMAGED, "no entry that no tensor uses"),
    "zip-crc": (DAMAGED, "bytes whose CRC-32 is the recorded one"),
    "zip-byteorder": (FORMAT, "little-endian tensors"),
    "zip-version": (FORMAT, "torch's file format 1 to 10"),
    "torchscript": (FOREIGN, "weights: a TorchScript archive carries code"),
    "pickle-opcode": (FOREIGN, "the opcodes that torch.save writes (protocol 2)"),
    "pickle-import": (FOREIGN, "only the names that tensors, optimizers and schedulers need"),
    "pickle-call": (FOREIGN, "calls of torch's own tensor builders, with the arguments that torch gives them"),
    "pickle-build": (FOREIGN, "state set on ordered dicts only"),
    "pickle-persistent-id": (FOREIGN, "persistent ids that name storages"),
    "pickle-truncated": (DAMAGED, "a pickle that ends with STOP"),
    "pickle-trailing": (DAMAGED, "no bytes after STOP"),
    "pickle-stack": (DAMAGED, "a stack that holds what each opcode takes"),
    "pickle-memo": (DAMAGED, "memo entries written once and before they are read"),
    "pickle-text": (DAMAGED, "text in valid UTF-8"),
    "pickle-number": (OVERRUN, "whole numbers of at most 32 bytes"),
    "pickle-key": (FOREIGN, "dictionary keys that are text or whole numbers, each once"),
    "pickle-size": (OVERRUN, "at most 32 MiB of pickle"),
    "pickle-opcodes": (OVERRUN, "at most 2,000,000 opcodes"),
    "pickle-string": (OVERRUN, "texts of at most 1 MiB"),
    "pickle-depth": (OVERRUN, "at most 64 containers inside each other"),
    "pickle-nodes": (OVERRUN, "at most 1,000,000 values, 200,000 of them containers"),
    "pickle-expansion": (OVERRUN, "at most 2,000,000 values once shared ones are counted wherever they appear"),
    "pickle-cycle": (OVERRUN, "containers that do not hold themselves"),
    "storage-type": (FOREIGN, "one dtype and one size for each storage"),
    "storage-size": (DAMAGED, "as many bytes stored as the pickle says"),
    "tensor-kind": (FORMAT, "plain dense tensors"),
    "tensor-shape": (OVERRUN, "sizes and strides that are whole numbers, none negative, at most 16 of them"),
    "tensor-bounds": (OVERRUN, "elements that lie within their storage"),
    "tensor-expanded": (OVERRUN, "no more bytes than are stored"),
    "legacy-magic": (FORMAT, "torch's magic number, protocol 1001 and system facts before the data"),
    "legacy-byteorder": (FORMAT, "little-endian tensors"),
    "legacy-keys": (DAMAGED, "the keys of exactly the storages that the data uses"),
    "legacy-trailing": (DAMAGED, "no bytes after the last storage"),
    "tar-member": (FOREIGN, "plain members sys_info, pickle, tensors and storages, each once"),
    "tar-layout": (DAMAGED, "a tar that reads to its end as torch wrote it"),
    "safetensors-header": (DAMAGED, "a JSON header of at most 16 MiB that fits the file"),
    "safetensors-json": (DAMAGED, "strict JSON: each key once, no NaN, no more than 8 levels"),
    "safetensors-count": (OVERRUN, "at most 200,000 tensors"),
    "safetensors-entry": (DAMAGED, "dtype, shape and data_offsets for each tensor, and nothing else"),
    "safetensors-dtype": (FORMAT, "a dtype of the format's list"),
    "safetensors-size": (DAMAGED, "as many bytes as shape and dtype need"),
    "safetensors-holes": (DAMAGED, "tensors that fill the data without gap or overlap"),
    "shard-index": (DAMAGED, "an index whose weight_map names each tensor's file, beside it"),
    "shard-tensors": (DAMAGED, "shards that hold exactly the tensors that the index gives them"),
    "child-died": (OVERRUN, "a file that can be examined within the limits on memory, time and open files"),
}
"""Rule to what its breach means, and what is accepted."""


class Refused(Exception):
    """A file breaks a rule.

    Parameters
    ----------
    rule : str
        A key of `RULES`.
    what : str
        What was found, in words; clipped.
    where : str
        Entry, member, byte or tensor.
    """

    def __init__(self, rule: str, what: str, where: str = "") -> None:
        self.kind, self.expected = RULES[rule]
        self.rule, self.what, self.where = rule, what[:SHOWN_CHARACTERS], where[:SHOWN_CHARACTERS]
        super().__init__(rule, self.what, self.where)
