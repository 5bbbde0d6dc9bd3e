//! Times (or, under callgrind, lets one count) the image path: `images decode|load|fast|crops FOLDER [ROUNDS]`.
//!
//! Prints the milliseconds an image of the quickest round, each file taken in turn on one thread.

use std::time::{Duration, Instant};

use _core::image::augment::Augment;
use _core::image::decode::decode;
use _core::image::geometry::{Fit, Rounding};
use _core::image::kernel::Interpolation;
use _core::image::load::{Buffers, Preparation};
use _core::image::normalise::Normalisation;
use _core::image::Limits;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, mode, folder, rest @ ..] = &arguments[..] else {
        return Err("usage: images decode|load|fast|crops FOLDER [ROUNDS]".into());
    };
    let rounds = rest.first().map_or(Ok(1), |text| text.parse::<usize>())?;
    let mut files: Vec<_> = std::fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    let preparation = Preparation {
        size: 224,
        fit: Fit::Crop(Rounding::Even),
        interpolation: Interpolation::Bicubic,
        normalisation: Normalisation::new([0.48, 0.46, 0.41], [0.27, 0.26, 0.28])?,
        augment: match mode.as_str() {
            "crops" => Some(Augment::new((0.5, 1.0), (0.75, 4.0 / 3.0), 0.5, [0.0; 3])?),
            _ => None,
        },
        seed: 1,
        fast: mode == "fast",
        channels_last: false,
        limits: Limits::default(),
    };
    let mut buffers = Buffers::default();
    let mut planes = vec![0_f32; preparation.elements()];
    let mut best = vec![Duration::MAX; files.len()];
    for round in 0..rounds {
        for (row, (path, best)) in files.iter().zip(&mut best).enumerate() {
            let data = std::fs::read(path)?;
            let begin = Instant::now();
            match mode.as_str() {
                "decode" => drop(std::hint::black_box(decode(&data, &preparation.limits)?)),
                _ => drop(preparation.load(
                    path,
                    round as u64,
                    row as u64,
                    &mut buffers,
                    &mut planes,
                )?),
            }
            *best = begin.elapsed().min(*best);
        }
    }
    let total: f64 = best.iter().map(Duration::as_secs_f64).sum();
    println!(
        "{mode}: {:.4} ms an image",
        total * 1e3 / files.len() as f64
    );
    Ok(())
}
