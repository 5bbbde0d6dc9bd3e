//! Work whose instructions one counts under valgrind: `counts tokens MERGES CAPTIONS ROUNDS`, `counts moments ELEMENTS ROUNDS`.
//!
//! What a program does besides its rounds is taken away by counting two numbers of them; `bench/instructions.py` does so.
//! MERGES is CLIP's vocabulary file, not compressed; CAPTIONS holds a caption a line.

use std::hint::black_box;

use _core::stats::moments::RunningMoments;
use _core::tokenize::{Input, Tokenizer};

const CLIP_LENGTH: usize = 77;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["tokens", merges, captions, rounds] => {
            let captions = std::fs::read_to_string(captions)?;
            tokens(
                &std::fs::read_to_string(merges)?,
                &captions,
                rounds.parse()?,
            )
        }
        ["moments", elements, rounds] => moments(elements.parse()?, rounds.parse()?),
        _ => Err(
            "usage: counts tokens MERGES CAPTIONS ROUNDS | counts moments ELEMENTS ROUNDS".into(),
        ),
    }
}

/// All captions to ids, on one thread; from the second round on every word is in the cache.
fn tokens(merges: &str, captions: &str, rounds: usize) -> Result<(), Box<dyn std::error::Error>> {
    let tokenizer = Tokenizer::clip(merges)?;
    let texts: Vec<Option<&str>> = captions.lines().map(Some).collect();
    let mut ids = vec![0_i64; texts.len() * CLIP_LENGTH];
    let mut lengths = vec![0; texts.len()];
    for _ in 0..rounds {
        let left = tokenizer.encode(&texts, Input::Texts, &mut ids, &mut lengths, 1)?;
        if !left.is_empty() {
            return Err(format!("{} captions want repair; give plain ones", left.len()).into());
        }
    }
    println!(
        "{} captions, {} tokens",
        texts.len(),
        lengths.iter().sum::<i64>()
    );
    Ok(())
}

/// Moments of made-up float32 values, on one thread.
fn moments(elements: usize, rounds: usize) -> Result<(), Box<dyn std::error::Error>> {
    let values: Vec<f32> = (0..elements)
        .map(|index| (index % 1009) as f32 / 1009.0)
        .collect();
    let mut moments = RunningMoments::new(1)?;
    for _ in 0..rounds {
        moments.update(black_box(&values), 1)?;
    }
    println!(
        "{} values, mean {}",
        moments.count(),
        moments.columns()[0].mean
    );
    Ok(())
}
