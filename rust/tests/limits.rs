//! What a file may cost: limits of pixels, memory and work, each with the sentence that refuses it.

use _core::image::{decode::decode, Limits};

/// A progressive grey JPEG of `side` by `side` pixels whose `scans` scans hold next to nothing.
fn scans_of_nothing(side: u16, scans: usize) -> Vec<u8> {
    let mut file = vec![0xff, 0xd8];
    let mut segment = |marker: u8, body: &[u8]| {
        file.extend([0xff, marker]);
        file.extend((body.len() as u16 + 2).to_be_bytes());
        file.extend(body);
    };
    segment(0xdb, &[&[0_u8][..], &[1; 64]].concat());
    let [high, low] = side.to_be_bytes();
    segment(0xc2, &[8, high, low, high, low, 1, 1, 0x11, 0]);
    // A comment, as a short file that declares many pixels is refused at once.
    segment(0xfe, &vec![0; 60_000]);
    for _ in 0..scans {
        segment(0xda, &[1, 1, 0, 0, 0, 0]);
    }
    file.extend([0xff, 0xd9]);
    file
}

fn message(data: &[u8], limits: &Limits) -> String {
    decode(data, limits).unwrap_err().to_string()
}

#[test]
fn many_scans_over_many_blocks_are_refused_before_they_take_long() {
    let limits = Limits::default();
    let said = message(&scans_of_nothing(5000, 100), &limits);
    assert!(
        said.contains("takes too long to decode: its 86 scans"),
        "{said}"
    );
    let said = message(&scans_of_nothing(64, 501), &limits);
    assert!(said.contains("more than 500 scans"), "{said}");
    assert!(decode(&scans_of_nothing(64, 3), &limits).is_ok());
}

#[test]
fn pixels_and_memory_are_refused_by_the_header() {
    let file = scans_of_nothing(5000, 1);
    let few = Limits {
        max_pixels: 24_999_999,
        ..Limits::default()
    };
    assert!(message(&file, &few).contains("more than the limit of 24999999 pixels"));
    let little = Limits {
        max_memory: 100 << 20,
        ..Limits::default()
    };
    assert!(message(&file, &little).contains("more than the limit of 100 MiB"));
}
