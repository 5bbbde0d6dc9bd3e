//! BERT's basic tokenizer: it repairs a text and cuts it into words and punctuation.
//!
//! Repair drops control characters, turns white space into spaces, separates every Chinese character, strips accents by
//! canonical decomposition and lowers each letter by itself (a final sigma becomes σ too). Words then end at white space
//! and at punctuation. Categories and decomposition come from the crates that Hugging Face's tokenizers uses, so that
//! both follow the same version of Unicode. Source: Devlin et al. 2019; tokenizers, `BertNormalizer`.

use unicode_categories::UnicodeCategories;
use unicode_normalization_alignments::UnicodeNormalization;

use super::scan;

/// Receives the words of a text in order.
pub trait WordSink {
    /// A word of at most sixteen ASCII bytes, as its key.
    fn short(&mut self, key: u128, length: usize);
    /// Any other word.
    fn word(&mut self, word: &[u8]);
    /// One character of punctuation; `rest` begins with it.
    fn punctuation(&mut self, rest: &[u8], length: usize);
    /// Whether further words would be dropped.
    fn is_full(&self) -> bool;
}

/// How a text is repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clean {
    /// Lower-case letters.
    pub lower: bool,
    /// Take accents off letters.
    pub strip_accents: bool,
    /// Let every Chinese character be a word.
    pub split_chinese: bool,
    /// Compose characters (NFC: a letter and its accent become one character).
    pub compose: bool,
}

impl Clean {
    /// Cut a text of printable ASCII characters.
    pub fn split_printable(&self, text: &[u8], buffer: &mut Vec<u8>, sink: &mut impl WordSink) {
        scan::load_text(buffer, text);
        let mut at = 0;
        while at < text.len() && !sink.is_full() {
            let bytes = scan::load(buffer, at);
            let length = scan::alphanumeric_run(bytes);
            if length == 0 {
                if buffer[at] != b' ' {
                    sink.punctuation(&buffer[at..text.len()], 1);
                }
                at += 1;
                continue;
            }
            if length < 16 || !buffer[at + 16].is_ascii_alphanumeric() {
                sink.short(
                    scan::prefix(
                        if self.lower {
                            scan::lower(bytes)
                        } else {
                            bytes
                        },
                        length,
                    ),
                    length,
                );
                at += length;
            } else {
                let end = at
                    + buffer[at..]
                        .iter()
                        .take_while(|byte| byte.is_ascii_alphanumeric())
                        .count();
                if self.lower {
                    buffer[at..end].make_ascii_lowercase();
                }
                sink.word(&buffer[at..end]);
                at = end;
            }
            at += usize::from(buffer[at] == b' ');
        }
    }

    /// Cut any text.
    pub fn split(&self, text: &str, cleaned: &mut String, sink: &mut impl WordSink) {
        self.clean(text, cleaned);
        for run in cleaned.split(char::is_whitespace) {
            let mut from = 0;
            for (at, character) in run
                .char_indices()
                .filter(|&(_, character)| is_punctuation(character))
            {
                if at > from {
                    sink.word(&run.as_bytes()[from..at]);
                }
                sink.punctuation(&run.as_bytes()[at..], character.len_utf8());
                from = at + character.len_utf8();
            }
            if from < run.len() {
                sink.word(&run.as_bytes()[from..]);
            }
            if sink.is_full() {
                return;
            }
        }
    }

    fn clean(&self, text: &str, cleaned: &mut String) {
        let characters = text
            .chars()
            .filter(|&character| !is_dropped(character))
            .map(|character| {
                if character.is_whitespace() {
                    ' '
                } else {
                    character
                }
            })
            .flat_map(|character| {
                let alone = self.split_chinese && is_chinese(character);
                let space = alone.then_some(' ');
                space.into_iter().chain([character]).chain(space)
            });
        cleaned.clear();
        if self.strip_accents {
            let bare = characters.nfd().map(|(character, _)| character);
            self.lower_into(
                bare.filter(|character| !character.is_mark_nonspacing()),
                cleaned,
            );
        } else if self.compose && self.lower {
            let lowered = characters.flat_map(char::to_lowercase);
            cleaned.extend(lowered.nfc().map(|(character, _)| character));
        } else if self.compose {
            cleaned.extend(characters.nfc().map(|(character, _)| character));
        } else {
            self.lower_into(characters, cleaned);
        }
    }

    fn lower_into(&self, characters: impl Iterator<Item = char>, cleaned: &mut String) {
        if self.lower {
            cleaned.extend(characters.flat_map(char::to_lowercase));
        } else {
            cleaned.extend(characters);
        }
    }
}

fn is_dropped(character: char) -> bool {
    match character {
        '\t' | '\n' | '\r' => false,
        '\0' | '\u{fffd}' => true,
        _ => character.is_other(),
    }
}

fn is_punctuation(character: char) -> bool {
    character.is_ascii_punctuation() || character.is_punctuation()
}

fn is_chinese(character: char) -> bool {
    matches!(u32::from(character),
        0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xf900..=0xfaff | 0x20000..=0x2a6df | 0x2a700..=0x2b73f
        | 0x2b740..=0x2b81f | 0x2b920..=0x2ceaf | 0x2f800..=0x2fa1f)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Words(Vec<String>);

    impl WordSink for Words {
        fn short(&mut self, key: u128, length: usize) {
            self.word(&key.to_le_bytes()[..length]);
        }
        fn word(&mut self, word: &[u8]) {
            self.0.push(String::from_utf8(word.to_vec()).unwrap());
        }
        fn punctuation(&mut self, rest: &[u8], length: usize) {
            self.word(&rest[..length]);
        }
        fn is_full(&self) -> bool {
            false
        }
    }

    fn clean(lower: bool, strip_accents: bool) -> Clean {
        Clean {
            lower,
            strip_accents,
            split_chinese: true,
            compose: false,
        }
    }

    fn words(clean: Clean, text: &str) -> Vec<String> {
        let mut sink = Words::default();
        clean.split(text, &mut String::new(), &mut sink);
        sink.0
    }

    #[test]
    fn both_ways_cut_ascii_alike() {
        let text = "Two DOGS, (3 of 12)  don't-stop! Supercalifragilisticexpialidocious1x ~ A16characterword";
        for lower in [false, true] {
            let mut sink = Words::default();
            clean(lower, lower).split_printable(text.as_bytes(), &mut Vec::new(), &mut sink);
            assert_eq!(sink.0, words(clean(lower, lower), text));
        }
    }

    #[test]
    fn accents_controls_and_chinese() {
        assert_eq!(words(clean(true, true), "Ca\u{301}FÉ\u{200b}x"), ["cafex"]);
        assert_eq!(words(clean(true, false), "FÉ"), ["fé"]);
        assert_eq!(
            words(clean(false, false), "a\u{7}b\u{fffd}c 狗跑¿x"),
            ["abc", "狗", "跑", "¿", "x"]
        );
    }
}
