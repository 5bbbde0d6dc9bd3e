//! Images: bytes to RGB as Pillow has it, geometry and resampling, augmentation, batches made ahead.

pub mod at_once;
pub mod augment;
mod bmp;
pub mod color;
pub mod decode;
mod exif;
pub mod format;
pub mod geometry;
mod gif;
mod jpeg;
pub mod kept;
pub mod kernel;
pub mod load;
pub mod normalise;
pub mod others;
mod passes;
pub mod pipeline;
mod png;
mod pool;
mod resize;
#[cfg(target_arch = "x86_64")]
mod resize_v3;
mod tiff;
mod webp;
mod weights;

/// An RGB image, eight bits a channel, rows from top to bottom, pixels packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    /// Pixels a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width * 3` bytes.
    pub pixels: Vec<u8>,
}

/// Limits of a file, checked against its header before anything of its size is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Width times height. The default, 178,956,970, is the number at which Pillow refuses: 512 MiB of RGB.
    pub max_pixels: u64,
    /// Bytes that the decoder may hold beside the file itself, the RGB result included. Default 1 GiB.
    pub max_memory: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_pixels: 178_956_970,
            max_memory: 1 << 30,
        }
    }
}
