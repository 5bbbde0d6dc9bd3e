//! Levels to normalised float32.

use crate::error::{Error, Result};
use crate::simd::vectorize;

/// Level to normalised value, a table a channel: `(level / 255 - mean) / std` in float32, as torchvision computes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalisation {
    tables: [[f32; 256]; 3],
    /// Without division, where that gives the same 256 values.
    formulas: [Option<Formula>; 3],
}

/// Two divisions as multiplications, each followed by a step that corrects the quotient by its remainder (Markstein).
#[derive(Clone, Copy, Debug, PartialEq)]
struct Formula {
    mean: f32,
    std: f32,
    inverse: f32,
}

impl Formula {
    #[inline(always)]
    fn of(self, level: u8) -> f32 {
        const INVERSE: f32 = 1.0 / 255.0;
        let divide = |value: f32, by: f32, inverse: f32| {
            let quotient = value * inverse;
            quotient.mul_add(-by, value).mul_add(inverse, quotient)
        };
        divide(
            divide(f32::from(level), 255.0, INVERSE) - self.mean,
            self.std,
            self.inverse,
        )
    }
}

impl Normalisation {
    /// Means and deviations on the scale 0 to 1.
    pub fn new(mean: [f32; 3], std: [f32; 3]) -> Result<Normalisation> {
        if let Some(bad) = std
            .iter()
            .find(|value| !(**value > 0.0 && value.is_finite()))
        {
            return Err(Error::Value(format!(
                "std must be three positive numbers, got {bad}"
            )));
        }
        if let Some(bad) = mean.iter().find(|value| !value.is_finite()) {
            return Err(Error::Value(format!(
                "mean must be three finite numbers, got {bad}"
            )));
        }
        let mut tables = [[0.0; 256]; 3];
        for (table, (mean, std)) in tables.iter_mut().zip(mean.into_iter().zip(std)) {
            for (level, value) in table.iter_mut().enumerate() {
                *value = (level as f32 / 255.0 - mean) / std;
            }
        }
        let formulas = std::array::from_fn(|channel| {
            let (mean, std) = (mean[channel], std[channel]);
            let formula = Formula {
                mean,
                std,
                inverse: 1.0 / std,
            };
            let mut levels = tables[channel].iter().zip(0..=255_u8);
            // Without FMA instructions `mul_add` is a function call.
            let fused = cfg!(target_arch = "aarch64") || has_fused();
            (fused && levels.all(|(value, level)| value.to_bits() == formula.of(level).to_bits()))
                .then_some(formula)
        });
        Ok(Normalisation { tables, formulas })
    }

    /// What each level of a channel becomes.
    pub fn table(&self, channel: usize) -> &[f32; 256] {
        &self.tables[channel]
    }

    /// Levels of one channel to float32.
    pub fn fill(&self, channel: usize, levels: &[u8], out: &mut [f32]) {
        let table = &self.tables[channel];
        match self.formulas[channel] {
            Some(formula) => vectorize(
                #[inline(always)]
                || {
                    for (out, &level) in out.iter_mut().zip(levels) {
                        *out = formula.of(level);
                    }
                },
            ),
            None => {
                for (out, &level) in out.iter_mut().zip(levels) {
                    *out = table[usize::from(level)];
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_fused() -> bool {
    pulp::x86::V3::try_new().is_some()
}

#[cfg(not(target_arch = "x86_64"))]
fn has_fused() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filling_is_the_table_to_the_bit() {
        let levels: Vec<u8> = (0..=255).collect();
        for (mean, std) in [
            (0.48145466, 0.26862954),
            (0.0, 1.0),
            (0.485, 0.229),
            (0.3, 1e-30),
            (1e30, 3.0),
        ] {
            let normalisation = Normalisation::new([mean; 3], [std; 3]).unwrap();
            let mut out = [0.0; 256];
            normalisation.fill(1, &levels, &mut out);
            let bits = |values: &[f32]| {
                values
                    .iter()
                    .map(|value| value.to_bits())
                    .collect::<Vec<_>>()
            };
            assert_eq!(bits(&out), bits(normalisation.table(1)));
        }
    }
}
