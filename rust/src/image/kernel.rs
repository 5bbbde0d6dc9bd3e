//! The resampling kernels.

/// The resampling kernel, widened by the scale when making smaller (antialiasing).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpolation {
    /// Triangle of half-width 1.
    Bilinear,
    /// Keys' cubic with a = -0.5, half-width 2.
    Bicubic,
}

impl Interpolation {
    /// Half the width of its support, in pixels of the larger scale.
    #[inline(always)]
    pub fn half_width(self) -> f64 {
        match self {
            Interpolation::Bilinear => 1.0,
            Interpolation::Bicubic => 2.0,
        }
    }

    /// Its value at a distance of `x` such pixels.
    #[inline(always)]
    pub fn weight(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Interpolation::Bilinear => (1.0 - x).max(0.0),
            Interpolation::Bicubic => {
                const A: f64 = -0.5;
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                } else {
                    0.0
                }
            }
        }
    }
}
