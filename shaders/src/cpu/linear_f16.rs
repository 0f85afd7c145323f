//! Products with weights of two f16 a word.

use super::unpack;

/// `y = x·wᵀ`: row `i` of `x` has `columns` numbers, row `j` of `w` half as many words.
pub fn linear_f16(x: &[f32], w: &[u32], columns: usize) -> Vec<f32> {
    let mut y = Vec::new();
    for x in x.chunks(columns) {
        for w in w.chunks(columns / 2) {
            y.push(w.iter().zip(x.chunks(2)).map(|(word, x)| unpack(*word)[0] * x[0] + unpack(*word)[1] * x[1]).sum());
        }
    }
    y
}

/// Numbers rounded to the nearest f16, two a word.
pub fn halves(x: &[f32]) -> Vec<u32> {
    x.chunks(2).map(|pair| half_bits(pair[0]) | half_bits(pair[1]) << 16).collect()
}

/// The bits of the nearest f16; of two as near the even one.
fn half_bits(x: f32) -> u32 {
    const LARGE: f32 = 65_520.0; // rounds to infinity, and so does all above
    const SMALLEST: f32 = 1.0 / 16_384.0; // that is no denormal
    let (sign, size) = (x.to_bits() >> 16 & 0x8000, x.abs());
    let bits = size.to_bits();
    sign | if size.is_nan() {
        0x7e00
    } else if size >= LARGE {
        0x7c00
    } else if size < SMALLEST {
        (size + 0.5).to_bits() - 0.5f32.to_bits() // the last bit of numbers above 0.5 is the smallest denormal
    } else {
        (bits + 0xfff + (bits >> 13 & 1) - (112 << 23)) >> 13
    }
}

/// `dx = dy·w`, the gradient by `x`: rows of `w` have `columns` numbers, rows of `dy` one for each of them.
pub fn linear_f16_dx(dy: &[f32], w: &[u32], columns: usize) -> Vec<f32> {
    let words = columns / 2;
    let mut dx = Vec::new();
    for dy in dy.chunks(w.len() / words) {
        let mut sums = vec![0.0; columns];
        for (dy, w) in dy.iter().zip(w.chunks(words)) {
            sums.iter_mut().zip(w.iter().copied().flat_map(unpack)).for_each(|(sum, w)| *sum += dy * w);
        }
        dx.extend(sums);
    }
    dx
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_its_own_and_what_lies_between_goes_to_the_nearest() {
        let number = |bits: u32| unpack(bits)[0];
        for bits in (0..0x7c00).chain(0x8000..0xfc00) {
            assert_eq!(half_bits(number(bits)), bits);
            if bits & 0x7fff < 0x7bff {
                let (x, next) = (number(bits), number(bits + 1));
                assert_eq!(half_bits(x + (next - x) * 0.25), bits);
                assert_eq!(half_bits(x + (next - x) * 0.75), bits + 1);
                assert_eq!(half_bits(x + (next - x) * 0.5), bits + (bits & 1), "to the even one");
            }
        }
        assert_eq!(
            [65_519.0, 65_520.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN].map(half_bits),
            [0x7bff, 0x7c00, 0x7c00, 0xfc00, 0x7e00]
        );
    }
}
