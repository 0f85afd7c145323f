"""Writes answers_golden.json beside it: what Python makes of answers, and of numbers with three decimals.

    python3.11 tests/golden/make_reason_golden.py

Python alone, no packages; 3.11 fixes which digits Unicode has. Numbers stand in the file as `repr` writes them, or as their
64 bits in hexadecimal digits where their `repr` is what is asked for.
"""

import json
import math
import random
import struct
import sys
import unicodedata
from pathlib import Path

HERE = Path(__file__).resolve().parent


def answer(text):
    """The number between the tags."""
    try:
        return float(text.split("<answer>")[1].split("</answer>")[0])
    except (IndexError, ValueError):
        return math.nan


def is_right(found, expected, tolerance):
    found, expected = round(found, 3), round(expected, 3)
    return abs(found - expected) < tolerance * abs(expected)


def digit_zeros():
    """Code points of every script's zero; its other digits follow it, and `float` knows no others."""
    digits = [code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) == "Nd"]
    zeros = [code for code in digits if unicodedata.decimal(chr(code)) == 0]
    assert digits == [zero + value for zero in zeros for value in range(10)]
    assert all(float(chr(code)) == (code - zeros[index // 10]) for index, code in enumerate(digits))
    for code in set(range(sys.maxunicode + 1)) - set(digits):
        assert math.isnan(answer(f"<answer>{chr(code)}</answer>")), hex(code)
    return zeros


# What stands between the tags.
NUMBERS = [
    "5", "5.0", "05", "-5", "+5", "+-5", "--5", "- 5", "5-", "5.", ".5", "-.5", "+5.", ".", "-", "+", "", " ", "-.", "5..", "5.5.5",
    " 5", "5 ", "\t5\n", "\n\n5\r\n", "\v5\f", "\x1c5", "5\x1f", "5\x00", "\x005", "\x7f5", "5 5", "5\n5",
    "\x855", "5\xa0", "\u16805", "\u20005\u200a", "\u20285\u2029", "\u202f5\u205f", "\u30005", "\u200b5", "5\u200b", "\ufeff5",
    "\u180e5", "\u20605", "\x1c٥", "٥\x1d", "\x0b٥\x0c", "\u3000 1_0 \u3000", "\x7f٥", "\x85\x1c٥",
    "1e3", "1E3", "1e+3", "1e-3", "1.e3", ".5e1", "1e03", "1e", "1e+", "e5", ".e5", "1e5.0", "1e 5", "1 e5", "1ee5", "1e5e5", "1d5",
    "1f", "1e5f", "1L", "1j", "inf", "Inf", "INF", "-inf", "+inf", "infinity", "Infinity", "-INFINITY", "+iNfInItY", "infinit",
    "infinityx", "in", "inf.", "i", "1inf", "∞", "nan", "NaN", "-nan", "+NAN", "nan(1)", "nans", "na", "none", "null", "true",
    "1_000", "1_0_0", "1__0", "_1", "1_", "1_.5", "1._5", "1.5_0", "1.5_", "1_0e1_0", "1e_5", "1_e5", "1e5_", "1e+_5", "1e+1_0",
    "+_1", "-1_0", "_", "in_f", "inf_", "_inf", "n_an", "1_inf", "1_000.000_1", " 1_0 ", "1_0\t", "1_ 0", "٥_٠", "٥__٠", "5_٠", "_٥",
    "1,000", "1,5", "1'000", "1 000", "1\u202f000", "20 Nm", "5kg", "$5", "5%", "five", "1/2", "2*3", "(5)", "[5]", "5!", "=5", "~5",
    "0x10", "0b11", "0o17", "0x1p3", "0x1.8p1", "#5", "5;", "5:", "“5”", "'5'", '"5"', "−5", "–5", "＋5", "1٫5", "1،000", "½", "²", "5²",
    "٥", "١٢٣", "١٢.٥", "1٢3", "-٥", "٥e٢", "५", "५.५e१", "５０", "𝟙𝟚.𝟛", "𝟘", "𝟿", "🯰🯹", "Ⅷ", "⑤", "五", "᧚", "᧑", "፩", "꩕", "𞥕",
    "٥kg", "é5", "5é", "_5é", "5ｅ5", "ｉｎｆ", "ınf", "İNF", "naN\u0301", "𝟏e𝟑",
    "0", "-0", "0.0", "-0.0", "0e5", "-0e-5", "0e99999999999999999999", "00000", "1e0", "1e400", "-1e400", "1e-400", "-1e-400",
    "1e308", "1.7976931348623157e308", "1.7976931348623158e308", "1.7976931348623159e308", "1.8e308", "5e-324", "2e-324", "3e-324",
    "2.2250738585072011e-308", "2.2250738585072014e-308", "1e99999999999999999999", "1e-99999999999999999999", "1e2147483648",
    "1e-2147483649", "1e9223372036854775808", "1" + "0" * 400, "0." + "0" * 400 + "1", "0." + "0" * 400 + "1e401", "1" + "0" * 400 + "e-400",
    "9007199254740993", "9007199254740992.9999999999999999999", "0.1", "0.30000000000000004", "2.675", "5999.999999999999", "1e22", "1e23",
    "123456789012345678901234567890", "8.5000000000000000000000000000000000000000000001", "4503599627370496.5", "4503599627370497.5",
    "4503599627370496.50000000000000000000000000000000000000000000001", "179769313486231580793728971405301e276",
]

# Whole texts.
TEXTS = [
    "", "5", "<answer>", "</answer>", "<answer></answer>", "<answer> </answer>", "<answer>5", "<answer>5\n", "<answer>5</answer",
    "<answer>5</answer> and more", "<answer>5 and more", "answer>5</answer>", "<Answer>5</Answer>", "<answer>5</Answer>",
    "< answer>5</answer>", "<answer >5</answer>", "<answer>5< /answer>", "5</answer>", "1 kg = 1000 g. 6 * 1000 = <answer>6000</answer>",
    "</answer><answer>5</answer>", "</answer>5<answer>6", "<answer>5</answer><answer>6</answer>", "<answer>5<answer>6</answer>",
    "<answer>x</answer><answer>6</answer>", "<answer></answer><answer>6</answer>", "<answer><answer>5</answer>", "<answer> <answer>5",
    "<answer>5</answer></answer>", "<answer>5</answer>x</answer>", "<answer>5<answer>", "<answer>5<answer></answer>", "<<answer>>5</answer>",
    "<answer<answer>5</answer>", "<ans<answer>wer>5", "<answer>5<", "<answer>5</", "<answer>5<|im_end|>", "ans<answer>5</answer>6",
    "line\n<answer>\n5\n</answer>\n", "größer: <answer>٥</answer>", "<answer>1,000</answer>", "<answer>20 Nm</answer>",
    "<answer>1e3</answer>", "&lt;answer&gt;5", "<ANSWER>5</ANSWER>", "<answer>5</answer" + "x" * 50, "<answer>" * 3 + "5",
]

# Rounded to three decimals.
ROUNDED = [
    0.0, -0.0, 0.0004, 0.0005, 0.0006, -0.0004, -0.0005, 0.00049999999999999994, 0.0005000000000000001, 0.0015, 0.0025, 0.0035, 0.001,
    0.0001, 0.00001, 1e-5, 1e-300, 5e-324, -5e-324, 2.675, 2.6745, 2.6755, 1.0005, 1.0015, 1.0025, 0.0625, 0.1875, 0.3125, 0.4375,
    0.5625, -0.0625, -0.1875, 1.0625, 1234.0625, 1234.1875, 8191.9375, 0.125, 0.5, 0.9995, 0.9994999999999999, 0.9996, 9.9995, 99.9995,
    999.9995, 0.9999999, 1.0, 120.0, 1 / 3, 2 / 3, 3.14159, 5999.999999999999, 8000.000000000001, 20870.982787499997, 80000.0, 105.6,
    39.370078740157474, 6.999999999999998, 1e15, 1e16, 1e17, 1e21, 1e22, 1e23, -1e22, 1e100, 1e300, 1e308, 1.7976931348623157e308,
    -1.7976931348623157e308, 123456789012.0625, 123456789012.1875, 4503599627370495.5, 4503599627370497.5, 2251799813685247.75,
    281474976710655.9375, 281474976710655.96875, 9007199254740991.0, 9007199254740992.0, 9007199254740993.0, 9999999999999998.0,
    999999999999999.9, 99999999999999.98, 9999999999999.998, 999999999999.9995, 17179869183.9995, 2.5, 0.1 + 0.2, 1e-4, 0.00051,
    1234567890123456.7, 12345678901234567.0, 0.29999999999999998, math.inf, -math.inf, math.nan,
]


def more_rounded():
    draw = random.Random(5)
    yield from (draw.randrange(-(10**6), 10**6) / 16 for _ in range(60))  # a half of a thousandth where it is odd
    yield from (draw.randrange(10**7) / 10**4 for _ in range(60))
    yield from (math.ldexp(draw.randrange(2**52, 2**53) * draw.choice([-1, 1]), draw.randrange(-70, 20)) for _ in range(60))
    yield from (draw.randrange(1, 11) * draw.uniform(0.125, 8000) for _ in range(60))


def reprs():
    """Numbers as bits, and their shortest digits."""
    draw = random.Random(6)
    numbers = [number for number in ROUNDED if math.isfinite(number)]
    numbers += [struct.unpack(">d", draw.randbytes(8))[0] for _ in range(100)]
    numbers += [10.0**exponent for exponent in range(-8, 25)] + [12345.678 * 10.0**exponent for exponent in range(-12, 16)]
    return [[struct.pack(">d", number).hex(), repr(number)] for number in numbers if math.isfinite(number)]


def checks():
    """found, expected, tolerance, whether that is right."""
    draw = random.Random(7)
    table = [(found, expected, 0.05) for expected in [0.0, -0.0, 0.0004, 0.125, 1.0, 5.0, 20.0, 100.0, -40.0, 6000.0, 1e22]
             for found in [math.nan, math.inf, -math.inf, 0.0, expected, -expected, expected * 1.05, expected * 0.95, expected * 1.0499,
                           expected * 1.05001, expected + 0.0004, 1e308]]
    table += [(105.0, 100.0, 0.05), (95.0, 100.0, 0.05), (104.999, 100.0, 0.05), (104.9995, 100.0, 0.05), (104.9994, 100.0, 0.05),
              (21.0, 20.0, 0.05), (1.05, 1.0, 0.05), (0.95, 1.0, 0.05), (0.0005, 0.001, 1.0), (5999.999999999999, 6000.0, 1e-9),
              (5999.999999999999, 6000.0, 0.0), (2.0, 1.0, 1.0), (1.999, 1.0, 1.0), (1e308, -1e308, 1.0), (math.inf, math.inf, 0.05)]
    for _ in range(100):
        expected = draw.randrange(1, 11) * draw.uniform(0.125, 8000)
        table.append((expected * draw.uniform(0.93, 1.07), expected, draw.choice([0.05, 0.05, 0.01])))
    return [[repr(found), repr(expected), repr(tolerance), is_right(found, expected, tolerance)] for found, expected, tolerance in table]


def main():
    assert sys.version_info[:2] == (3, 11), "another Python knows other digits"
    texts = TEXTS + [f"<answer>{number}</answer>" for number in NUMBERS]
    golden = {
        "unicode": unicodedata.unidata_version,
        "zeros": digit_zeros(),
        "answers": [[text, repr(answer(text))] for text in texts],
        "rounded": [[repr(number), str(round(number, 3))] for number in [*ROUNDED, *more_rounded()]],
        "reprs": reprs(),
        "checks": checks(),
    }
    rows = ",\n".join(
        f'"{key}": ' + ("[\n" + ",\n".join(map(json.dumps, value)) + "\n]" if key not in {"unicode", "zeros"} else json.dumps(value))
        for key, value in golden.items())
    (HERE / "answers_golden.json").write_text("{\n" + rows + "\n}\n", encoding="utf-8")
    print({key: len(value) for key, value in golden.items()})


if __name__ == "__main__":
    main()
