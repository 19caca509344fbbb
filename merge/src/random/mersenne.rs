//! The Mersenne Twister MT19937, of which torch on a CPU takes its draws.

/// Words of state.
const N: usize = 624;
/// Distance of the words that are mixed.
const M: usize = 397;

/// The generator of Matsumoto and Nishimura 1998, seeded as in their version of 2002.
#[derive(Clone)]
pub struct Mersenne {
    state: Box<[u32; N]>,
    next: usize,
}

impl Mersenne {
    /// Seeded with a 32-bit number.
    #[must_use]
    pub fn new(seed: u32) -> Self {
        let mut state = Box::new([0; N]);
        state[0] = seed;
        for index in 1..N {
            let last = state[index - 1];
            state[index] = (last ^ last >> 30)
                .wrapping_mul(1_812_433_253)
                .wrapping_add(index as u32);
        }
        Self { state, next: N }
    }

    /// The next 32 bits.
    #[inline]
    pub fn next_u32(&mut self) -> u32 {
        if self.next == N {
            self.turn();
        }
        let word = self.state[self.next];
        self.next += 1;
        temper(word)
    }

    /// Leaves out `n` draws.
    pub fn skip(&mut self, mut n: u64) {
        while n > 0 {
            if self.next == N {
                self.turn();
            }
            let step = n.min((N - self.next) as u64);
            self.next += step as usize;
            n -= step;
        }
    }

    /// Draws in [0, 1): the lower 24 bits of each word over 2²⁴, as torch takes them.
    pub fn fill_unit(&mut self, mut out: &mut [f32]) {
        while !out.is_empty() {
            if self.next == N {
                self.turn();
            }
            let n = out.len().min(N - self.next);
            let (now, later) = std::mem::take(&mut out).split_at_mut(n);
            let words = &self.state[self.next..self.next + n];
            crate::vectorized(
                #[inline(always)]
                || {
                    for (out, &word) in now.iter_mut().zip(words) {
                        *out = (temper(word) & 0x00ff_ffff) as f32 * super::UNIT;
                    }
                },
            );
            self.next += n;
            out = later;
        }
    }

    /// The next 624 words of state. Each loop reads what it wrote 227 places before, at the nearest,
    /// so that it goes by whole vectors.
    fn turn(&mut self) {
        let state = &mut *self.state;
        crate::vectorized(
            #[inline(always)]
            || {
                for index in 0..N - M {
                    state[index] = state[index + M] ^ mix(state[index], state[index + 1]);
                }
                for index in N - M..N - 1 {
                    state[index] = state[index + M - N] ^ mix(state[index], state[index + 1]);
                }
                state[N - 1] = state[M - 1] ^ mix(state[N - 1], state[0]);
            },
        );
        self.next = 0;
    }
}

#[inline(always)]
fn mix(upper: u32, lower: u32) -> u32 {
    let word = upper & 0x8000_0000 | lower & 0x7fff_ffff;
    word >> 1 ^ (word & 1).wrapping_neg() & 0x9908_b0df
}

#[inline(always)]
fn temper(mut word: u32) -> u32 {
    word ^= word >> 11;
    word ^= word << 7 & 0x9d2c_5680;
    word ^= word << 15 & 0xefc6_0000;
    word ^ word >> 18
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ten_thousandth_draw_is_the_standards() {
        // ISO C++ [rand.predef]: the 10000th value of a default mt19937 (seed 5489).
        let mut generator = Mersenne::new(5489);
        generator.skip(9_999);
        assert_eq!(generator.next_u32(), 4_123_659_995);
    }
}
