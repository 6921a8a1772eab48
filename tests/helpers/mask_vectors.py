"""The specification's vectors of masks, and random pairs."""

# id: rejected, chosen, m-, m+, and without hole filling where that differs
VECTORS = {
    "M1 equal": ("5 6 7", "5 6 7", "000", "000"),
    "M2 replace": ("5 6 7 8", "5 60 7 8", "0100", "0100"),
    "M3 insert": ("5 6 7 8", "5 6 60 61 7 8", "0000", "001100"),
    "M4 delete": ("5 6 60 61 7 8", "5 6 7 8", "001100", "0000"),
    "M5 hole of 1": ("5 20 6 21 7", "5 30 6 31 7", "01110", "01110", "01010", "01010"),
    "M6 hole of 2": ("5 20 6 8 21 7", "5 30 6 8 31 7", "010010", "010010"),
    "M7 one side": ("1 2 3", "1 50 2 51 3", "000", "01110", "000", "01010"),
    "M8 chain": ("1 20 2 21 3 22 4", "1 30 2 31 3 32 4", "0111110", "0111110", "0101010", "0101010"),
    "M9 look-alike": ("7 1234 8", "7 1235 8", "010", "010"),
    "M10 uneven": ("7 100 200 8", "7 300 8", "0110", "010"),
    "M11": ("1 40 2 3", "1 2 50 3", "0100", "0010"),
    "M12 empty side": ("", "4 5", "", "11"),
    "M13 id 0": ("1 0 2", "1 9 2", "010", "010"),
    "M14 swap": ("1 2 3 4", "1 3 2 4", "0010", "0100"),
    "M15": ("9 5 8 6", "7 5 10 6", "1110", "1110", "1010", "1010"),
}


def ids(text):
    return [int(t) for t in text.split()]


def edited_pair(rng, length, vocabulary, edits):
    chosen = [rng.randrange(vocabulary) for _ in range(length)]
    rejected = list(chosen)
    for _ in range(edits):
        at, cut = rng.randrange(len(rejected) + 1), rng.randrange(6)
        rejected[at : at + cut] = [rng.randrange(vocabulary) for _ in range(rng.randrange(6))]
    return rejected, chosen
