//! Every allocation whose size depends on input, made to fail in turn: an error each time, and never the process's end.
//!
//! Failing are allocations of at least `LARGE` bytes: tables of a fixed size, rows and messages are smaller, in other crates too.
//! Of WebP only the first is tried: the crate that decodes it allocates within, after a look at whether there is room.

// An allocator is unsafe by nature.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::Path;

use _core::error::{Error, Result};
use _core::image::at_once::{load_all, shrink_all};
use _core::image::augment::Augment;
use _core::image::decode::decode;
use _core::image::geometry::{Fit, Rounding};
use _core::image::kernel::Interpolation;
use _core::image::load::Preparation;
use _core::image::normalise::Normalisation;
use _core::image::Limits;
use _core::stats::moments::RunningMoments;
use _core::tokenize::{build_vocabulary, Clean, Input, Tokenizer};

const LARGE: usize = 400_000;

thread_local! {
    /// How many large allocations of this thread succeed before one fails; all do while it is the largest number.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

struct Failing;

fn refuses(size: usize) -> bool {
    if size < LARGE || LEFT.get() == usize::MAX {
        return false;
    }
    let left = LEFT.get();
    LEFT.set(left.checked_sub(1).unwrap_or(usize::MAX - 1));
    left == 0
}

unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match refuses(layout.size()) {
            true => std::ptr::null_mut(),
            false => System.alloc(layout),
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match refuses(layout.size()) {
            true => std::ptr::null_mut(),
            false => System.alloc_zeroed(layout),
        }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        match refuses(size) {
            true => std::ptr::null_mut(),
            false => System.realloc(place, layout, size),
        }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        System.dealloc(place, layout);
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

/// Runs the work with its first large allocation failing, then its second, and so on until none does; returns how many did.
///
/// The work runs on a thread of its own, which has kept no buffers.
fn fail_each<T: Send>(what: &str, most: usize, work: impl Fn() -> Result<T> + Sync) -> usize {
    for number in 0..most {
        let done = std::thread::scope(|scope| {
            let run = || {
                LEFT.set(number);
                let done = work();
                let left = LEFT.replace(usize::MAX);
                (done, left)
            };
            scope.spawn(run).join().expect("no panic")
        });
        match done {
            // Not used up: there were only so many.
            (Ok(_), left) if left <= number => return number,
            (Err(Error::Memory { bytes, .. }), _) => {
                assert!(bytes >= LARGE as u64 / 4, "{what} {number}: {bytes}")
            }
            // A cache that could not grow is no error.
            (Ok(_), _) => {}
            (Err(other), _) => panic!("{what}, allocation {number}: {other}"),
        }
    }
    most
}

/// Pictures of 800 x 600 pixels of every format.
fn pictures() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("rust/tests/pictures");
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("the pictures of this test")
        .map(|entry| entry.expect("a file").path())
        .collect();
    files.sort();
    let named = |path: std::path::PathBuf| {
        let name = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let mut data = fs::read(&path).expect("a picture");
        if name.ends_with("jpg") {
            // Behind the end marker, so that the buffer of the coded data is large.
            data.resize(500_000, 0);
        }
        (name, data)
    };
    files.into_iter().map(named).collect()
}

#[test]
fn decoding() {
    for (name, data) in pictures() {
        let most = if name.ends_with("webp") { 1 } else { 100 };
        let count = fail_each(&name, most, || decode(&data, &Limits::default()));
        assert!(count > 0, "{name}: nothing large was allocated");
    }
}

fn preparation(augment: Option<Augment>, channels_last: bool) -> Preparation {
    Preparation {
        size: 600,
        fit: Fit::Crop(Rounding::Even),
        interpolation: Interpolation::Bicubic,
        normalisation: Normalisation::new([0.5; 3], [0.25; 3]).expect("a deviation above 0"),
        augment,
        seed: 0,
        fast: false,
        channels_last,
        limits: Limits::default(),
    }
}

#[test]
fn samples_and_smaller_pictures() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("rust/tests/pictures");
    let path = folder.join("baseline.jpg");
    let jitter = Augment::new((0.9, 1.0), (0.9, 1.1), 0.5, [0.2; 3]).expect("bounds in order");
    for preparation in [
        preparation(None, false),
        preparation(None, true),
        preparation(Some(jitter), false),
    ] {
        let work = || {
            let mut out = vec![0_f32; preparation.elements()];
            load_all(&[(&path, 0)], &preparation, 0, 1, &mut out)
        };
        let count = fail_each("load", 100, || {
            let saved = LEFT.replace(usize::MAX);
            let mut out = vec![0_f32; preparation.elements()];
            LEFT.set(saved);
            load_all(&[(&path, 0)], &preparation, 0, 1, &mut out)
        });
        assert!(count > 2);
        assert!(work().is_ok());
    }
    let preparation = preparation(None, false);
    let count = fail_each("shrink", 100, || {
        shrink_all(std::slice::from_ref(&path), &preparation, 300, 1)
    });
    assert!(count > 2);
}

#[test]
fn moments() {
    assert!(fail_each("columns", 10, || RunningMoments::new(100_000)) > 0);
    let values = vec![1.0_f32; 300_000];
    let count = fail_each("update", 50, || {
        let saved = LEFT.replace(usize::MAX);
        let mut moments = RunningMoments::new(100_000).expect("memory");
        LEFT.set(saved);
        moments.update(&values, 1)
    });
    assert!(count > 0);
}

#[test]
fn tokenizers() {
    let long = format!("{} caf\u{e9} \u{72d7}", "a".repeat(500_000));
    let words: Vec<String> = (0..60_000).map(|number| format!("w{number}x")).collect();
    let entries: Vec<&str> = words.iter().map(String::as_str).collect();
    let text = words.join(" ");
    let clean = Clean {
        lower: true,
        strip_accents: true,
        split_chinese: true,
        compose: false,
    };
    let mut bert = vec!["[UNK]", "[CLS]", "[SEP]", "[PAD]"];
    bert.extend(&entries);
    let marks = ["[CLS]", "[SEP]", "[PAD]", "[UNK]"];
    let merges = format!("header\na a\n{}", "\n".repeat(10));
    type Make<'a> = Box<dyn Fn() -> Result<Tokenizer> + Sync + 'a>;
    let makers: [(&str, Make<'_>); 3] = [
        ("words", Box::new(|| Tokenizer::words(&entries))),
        (
            "bert",
            Box::new(|| Tokenizer::bert(&bert, marks, &[], clean)),
        ),
        ("clip", Box::new(|| Tokenizer::clip(&merges))),
    ];
    for (name, make) in makers {
        fail_each(name, 100, &make);
        let plain = "a".repeat(500_000);
        for text in [long.as_str(), text.as_str(), plain.as_str()] {
            fail_each(name, 100, || {
                let saved = LEFT.replace(usize::MAX);
                let tokenizer = make()?;
                LEFT.set(saved);
                let (mut ids, mut lengths) = ([0_i64; 16], [0_i64]);
                tokenizer.encode(&[Some(text)], Input::Texts, &mut ids, &mut lengths, 1)
            });
        }
    }
    assert!(
        fail_each("vocabulary", 100, || build_vocabulary(
            &[Some(text.as_str())],
            1,
            100_000
        )) > 0
    );
}
