//! The fuzzer's seeds, and every input that ever broke something, run through the targets' checks: `fuzz/seeds/TARGET/`.

use std::fs;
use std::path::Path;

#[path = "../../fuzz/checks.rs"]
mod checks;

fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/seeds")
        .join(target);
    let mut count = 0;
    for entry in fs::read_dir(&folder).expect("a folder of seeds") {
        let path = entry.expect("a file").path();
        println!("{}", path.display()); // shown where a check fails
        let data = fs::read(&path).expect("a seed");
        check(&data);
        // Cut short anywhere, it must hold too.
        for end in (0..data.len()).step_by(1 + data.len() / 64) {
            check(&data[..end]);
        }
        count += 1;
    }
    assert!(count > 4, "{target}: only {count} seeds");
}

#[test]
fn images() {
    replay("image", checks::image);
}

#[test]
fn clip() {
    replay("clip", checks::clip);
}

#[test]
fn bert() {
    replay("bert", checks::bert);
}

#[test]
fn words() {
    replay("words", checks::words);
}
