"""Which cache blocks are free, and how many hold each of the others. Pure accounting: numbers only, no memory."""


class BlockPool:
    """Blocks 0 .. total - 1. A block is free, or held once by each sequence that reads it and by the prefix tree."""

    def __init__(self, total: int) -> None:
        self.total = total
        # A stack: the block given back last is taken first, while its memory may still be in the processor's cache.
        self._free = list(range(total - 1, -1, -1))
        self._references = [0] * total

    @property
    def free(self) -> int:
        """How many blocks nobody holds."""
        return len(self._free)

    def references(self, block: int) -> int:
        return self._references[block]

    def take(self, count: int) -> list[int]:
        """`count` free blocks, each held once from now on. The caller has made sure that there are so many."""
        assert 0 < count <= len(self._free)
        taken = self._free[-count:][::-1]
        del self._free[-count:]
        for block in taken:
            self._references[block] = 1
        return taken

    def hold(self, block: int) -> int:
        """One holder more; returns how many there are now. Only for a block that somebody holds already."""
        assert self._references[block] > 0, f"block {block} is free"
        self._references[block] += 1
        return self._references[block]

    def release(self, block: int) -> int:
        """One holder fewer; returns how many are left. The last one frees the block."""
        left = self._references[block] - 1
        assert left >= 0, f"block {block} is free already"
        self._references[block] = left
        if left == 0:
            self._free.append(block)
        return left
