//! Adam on a few numbers, in f64.

/// Betas and epsilon as published.
const BETAS: [f64; 2] = [0.9, 0.999];
const EPSILON: f64 = 1e-8;

/// Adam without decay.
pub(super) struct Adam {
    rate: f64,
    first: Vec<f64>,
    second: Vec<f64>,
    n_steps: i32,
}

impl Adam {
    /// Of `n` numbers.
    pub(super) fn new(rate: f64, n: usize) -> Self {
        Self {
            rate,
            first: vec![0.0; n],
            second: vec![0.0; n],
            n_steps: 0,
        }
    }

    /// One step against the gradient.
    pub(super) fn step(&mut self, values: &mut [f64], gradient: &[f64]) {
        self.n_steps += 1;
        let [of_first, of_second] = BETAS.map(|beta| 1.0 - beta.powi(self.n_steps));
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((value, slope), (first, second)) in values.iter_mut().zip(gradient).zip(moments) {
            *first = BETAS[0] * *first + (1.0 - BETAS[0]) * slope;
            *second = BETAS[1] * *second + (1.0 - BETAS[1]) * slope * slope;
            *value -= self.rate * (*first / of_first) / ((*second / of_second).sqrt() + EPSILON);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_has_the_length_of_the_rate_and_no_slope_moves_nothing() {
        let mut adam = Adam::new(0.1, 3);
        let mut values = [1.0, 1.0, 1.0];
        adam.step(&mut values, &[4.0, -0.5, 0.0]);
        for (found, expected) in values.iter().zip([0.9, 1.1, 1.0]) {
            assert!((found - expected).abs() < 1e-7, "{values:?}");
        }
    }
}
