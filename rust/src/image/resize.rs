//! Pillow's two-pass resampling, of the needed pixels only, a finished row at a time.
//!
//! Across and down with rounding to 8 bits between, as Pillow does it; only pixels that the crop needs are computed.
//! Weights have 16 bits (`weights.rs`): levels are Pillow's but for a few in a thousand, which are off by one. Pillow
//! before 13 goes across first but for very tall pictures, which can differ by a level or two.

use super::geometry::Geometry;
use super::kernel::Interpolation;
use super::passes::{portable, Layout, Passes, Scratch};
use super::weights::Weights;
use super::Rgb;
use crate::error::Result;

/// Resizes and crops to `size` (columns, rows); `row` gets each row of the result in turn, in the layout asked for.
///
/// A row holds at least `3 * pitch(columns)` levels; those that the layout does not use are undefined.
pub fn resize(
    image: &Rgb,
    geometry: &Geometry,
    size: (usize, usize),
    kernel: Interpolation,
    layout: Layout,
    scratch: &mut Scratch,
    row: &mut dyn FnMut(usize, &[u8]),
) -> Result<()> {
    let Geometry {
        source,
        resized,
        left,
        top,
        flip,
    } = *geometry;
    let (x, y) = geometry.stretches();
    let across = Weights::new(x, resized.0, left, size.0, kernel, flip)?;
    let down = Weights::new(y, resized.1, top, size.1, kernel, false)?;
    // Pillow's choice since version 13 (found by experiment): down first for tall pictures.
    let shorter = source.height - resized.1 as f64;
    let narrower = source.width - resized.0 as f64;
    let stride = image.width * 3;
    let passes = Passes {
        source: &image.pixels[down.first * stride + across.first * 3..],
        stride,
        across,
        down,
        down_first: shorter > 0.0 && shorter > 2.0 * narrower,
        layout,
    };
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return super::resize_v3::run(simd, &passes, scratch, row);
    }
    portable(&passes, scratch, row)
}

#[cfg(test)]
mod tests {
    use super::super::geometry::{Area, Fit, Rounding};
    use super::super::passes::place;
    use super::*;
    use crate::image::augment::mix;

    fn packed(image: &Rgb, geometry: &Geometry, size: (usize, usize)) -> Vec<u8> {
        let mut out = Vec::new();
        let mut scratch = Scratch::default();
        let kernel = Interpolation::Bicubic;
        let mut row = |y: usize, row: &[u8]| {
            assert_eq!(y * size.0 * 3, out.len());
            out.extend_from_slice(&row[..size.0 * 3]);
        };
        resize(
            image,
            geometry,
            size,
            kernel,
            Layout::Packed,
            &mut scratch,
            &mut row,
        )
        .unwrap();
        out
    }

    #[test]
    fn one_colour_stays() {
        let image = Rgb {
            width: 9,
            height: 5,
            pixels: [10_u8, 128, 250].repeat(45),
        };
        let out = packed(
            &image,
            &Geometry::centre(9, 5, 7, Fit::Crop(Rounding::Even)),
            (7, 7),
        );
        assert_eq!(out, [10_u8, 128, 250].repeat(49));
    }

    #[test]
    fn same_size_is_identity_and_flip_mirrors() {
        let image = Rgb {
            width: 4,
            height: 4,
            pixels: (0..48).collect(),
        };
        let whole = Area {
            left: 0,
            top: 0,
            width: 4,
            height: 4,
        };
        let out = packed(&image, &Geometry::part(whole, 4, false), (4, 4));
        assert_eq!(out, image.pixels);
        let out = packed(&image, &Geometry::part(whole, 4, true), (4, 4));
        assert_eq!(&out[..6], &[9, 10, 11, 6, 7, 8]);
    }

    #[test]
    fn vector_instructions_and_plain_loops_agree_to_the_bit() {
        #[cfg(target_arch = "x86_64")]
        for seed in 0..200_u64 {
            let Some(simd) = pulp::x86::V3::try_new() else {
                return;
            };
            let draw = |k: u64, most: u64| 1 + (mix(seed * 64 + k) % most) as usize;
            let most = [4, 20, 90][seed as usize % 3];
            let (width, height) = (draw(0, most), draw(1, most));
            let (columns, rows) = (draw(2, 40), draw(3, 40));
            let pixels = (0..width * height * 3).map(|k| mix(seed << 32 | k as u64) as u8);
            let pixels: Vec<u8> = pixels.collect();
            let (x, y) = Geometry::whole(width, height, (columns, rows)).stretches();
            // Every part of the result, mirrored or not, in either order and layout.
            let (skip, flip) = (seed as usize % columns.min(rows), seed % 2 == 0);
            let kernel = [Interpolation::Bicubic, Interpolation::Bilinear][seed as usize / 3 % 2];
            let across = Weights::new(x, columns, skip, columns - skip, kernel, flip).unwrap();
            let down = Weights::new(y, rows, skip, rows - skip, kernel, false).unwrap();
            let passes = Passes {
                source: &pixels[(down.first * width + across.first) * 3..],
                stride: width * 3,
                across,
                down,
                down_first: seed % 5 < 2,
                layout: [Layout::Packed, Layout::Planes][seed as usize / 7 % 2],
            };
            let mut results = [vec![], vec![]];
            let columns = columns - skip;
            for (vector, result) in [true, false].into_iter().zip(&mut results) {
                // What was in the buffers before must not matter.
                let mut scratch = Scratch::default();
                scratch.between.resize(100_000, 7 + seed as u8);
                scratch.tile.resize(1000, [u32::MAX; 8]);
                let mut row = |_: usize, row: &[u8]| {
                    for x in 0..columns {
                        result.extend((0..3).map(|c| row[place(passes.layout, columns, x, c)]));
                    }
                };
                if vector {
                    crate::image::resize_v3::run(simd, &passes, &mut scratch, &mut row).unwrap();
                } else {
                    portable(&passes, &mut scratch, &mut row).unwrap();
                }
            }
            assert_eq!(results[0].len(), columns * (rows - skip) * 3);
            assert!(results[0] == results[1], "seed {seed}");
        }
    }
}
