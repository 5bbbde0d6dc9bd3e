//! Levels to normalised float32.

use crate::error::{Error, Result};

/// Level to normalised value, a table a channel: `(level / 255 - mean) / std` in float32, as torchvision computes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalisation {
    tables: [[f32; 256]; 3],
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
        Ok(Normalisation { tables })
    }

    /// What each level of a channel becomes.
    pub fn table(&self, channel: usize) -> &[f32; 256] {
        &self.tables[channel]
    }
}
