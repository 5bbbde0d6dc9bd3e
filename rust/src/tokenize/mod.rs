//! Caption tokenizers: they turn lists of texts into padded rows of token ids and the rows' lengths.

mod bpe;
mod cache;
mod clean;
mod merges;
mod pool;
mod row;
mod scan;
mod wordpiece;
mod words;

use std::sync::{Mutex, PoisonError};

pub use clean::Clean;
pub use row::TokenId;
pub use words::build_vocabulary;

use crate::error::{Error, Result};
use bpe::{Bpe, BpeScratch};
use cache::WordCache;
use row::Row;
use wordpiece::WordPiece;
use words::Words;

/// Rows that a thread takes at a time; a batch of fewer than twice as many rows stays on the caller's thread.
const CHUNK_ROWS: usize = 512;

enum Model {
    Clip(Box<Bpe>),
    Bert(Box<WordPiece>),
    Words(Words),
}

/// Buffers and word cache of one encoding thread, kept between calls.
#[derive(Default)]
struct Workspace {
    buffer: Vec<u8>,
    cleaned: String,
    cache: WordCache,
    bpe: BpeScratch,
    /// Length of the longest text that there is room for.
    room: usize,
}

impl Workspace {
    /// Makes room for a text, so that encoding it allocates nothing of its size.
    #[inline(always)]
    fn reserve(&mut self, text: &str) -> Result<()> {
        if text.len() <= self.room {
            return Ok(());
        }
        self.grow(text)
    }

    #[cold]
    fn grow(&mut self, text: &str) -> Result<()> {
        scan::reserve_text(text, &mut self.buffer, &mut self.cleaned)?;
        // Canonical decomposition may turn each byte of a word into three.
        self.cache.reserve(3 * text.len())?;
        self.bpe.reserve(text.len())?;
        self.room = text.len();
        Ok(())
    }
}

/// A tokenizer, which threads may share.
pub struct Tokenizer {
    model: Model,
    start: u32,
    end: u32,
    pad: u32,
    vocabulary_size: usize,
    idle: Mutex<Vec<Workspace>>,
}

/// The form of the texts of a batch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Captions as written.
    Texts,
    /// Captions that the caller has repaired and cut into words, one word per line (CLIP only).
    Pieces,
}

struct Chunk<'a, T> {
    first: usize,
    ids: &'a mut [T],
    lengths: &'a mut [i64],
}

impl Tokenizer {
    /// CLIP's byte-pair encoding from the text of a vocabulary file; padding is 0.
    pub fn clip(vocabulary: &str) -> Result<Self> {
        let bpe = Bpe::new(vocabulary)?;
        let (start, end) = bpe.marks();
        Ok(Self::new(
            Model::Clip(Box::new(bpe)),
            start,
            end,
            0,
            end as usize + 1,
        ))
    }

    /// BERT's WordPiece from its entries in the order of their ids; `marks` are the tokens for the start, the end,
    /// padding and unknown words.
    pub fn bert(
        entries: &[&str],
        marks: [&str; 4],
        special: &[&str],
        clean: Clean,
    ) -> Result<Self> {
        let [start, end, pad, unknown] = marks;
        let tokens: Vec<&str> = marks.iter().chain(special).copied().collect();
        let model = WordPiece::new(entries, unknown, &tokens, clean)?;
        let find = |token: &str| {
            model.id_of(token).ok_or_else(|| {
                Error::Value(format!("BERT vocabulary: no entry for the mark {token:?}"))
            })
        };
        let (start, end, pad) = (find(start)?, find(end)?, find(pad)?);
        Ok(Self::new(
            Model::Bert(Box::new(model)),
            start,
            end,
            pad,
            entries.len(),
        ))
    }

    /// Whole words, the first with id 4.
    pub fn words(words: &[&str]) -> Result<Self> {
        let model = Words::new(words)?;
        Ok(Self::new(
            Model::Words(model),
            words::START,
            words::END,
            words::PAD,
            words.len() + 4,
        ))
    }

    fn new(model: Model, start: u32, end: u32, pad: u32, vocabulary_size: usize) -> Self {
        Self {
            model,
            start,
            end,
            pad,
            vocabulary_size,
            idle: Mutex::default(),
        }
    }

    /// The number of ids.
    pub fn vocabulary_size(&self) -> usize {
        self.vocabulary_size
    }

    /// The ids of the start mark, the end mark and the padding.
    pub fn marks(&self) -> (u32, u32, u32) {
        (self.start, self.end, self.pad)
    }

    /// Encode `texts` into the rows of `ids` (start mark, tokens, end mark, padding; tokens that do not fit are dropped)
    /// and write the lengths, marks included. With `threads` 0 the size of the batch decides the number of threads.
    ///
    /// Returns the rows that are not written, in ascending order: texts that are None, and texts that the caller must
    /// repair and cut first (CLIP; see `Input::Pieces`).
    pub fn encode<T: TokenId>(
        &self,
        texts: &[Option<&str>],
        input: Input,
        ids: &mut [T],
        lengths: &mut [i64],
        threads: usize,
    ) -> Result<Vec<usize>> {
        let rows = texts.len();
        if rows == 0 {
            return Ok(Vec::new());
        }
        if lengths.len() != rows || !ids.len().is_multiple_of(rows) || ids.len() / rows < 2 {
            return Err(Error::Value(format!(
                "{rows} texts need ids of {rows} rows of at least 2 and {rows} lengths, got {} ids and {} lengths",
                ids.len(),
                lengths.len()
            )));
        }
        let width = ids.len() / rows;
        let chunks = ids
            .chunks_mut(CHUNK_ROWS * width)
            .zip(lengths.chunks_mut(CHUNK_ROWS));
        let chunks = chunks.enumerate().map(|(chunk, (ids, lengths))| Chunk {
            first: chunk * CHUNK_ROWS,
            ids,
            lengths,
        });
        let (queue, left) = (Mutex::new(chunks), Mutex::new(Ok(Vec::new())));
        let wanted = if threads == 0 { pool::cores() } else { threads };
        pool::run(wanted.min(rows / CHUNK_ROWS).saturating_sub(1), || {
            let mut workspace = self.take_workspace();
            loop {
                let Some(chunk) = lock(&queue).next() else {
                    break;
                };
                let mine = self.encode_chunk(texts, input, width, chunk, &mut workspace);
                let mut left = lock(&left);
                match (&mut *left, mine) {
                    (Ok(left), Ok(mine)) => left.extend(mine),
                    (Ok(_), Err(error)) => *left = Err(error),
                    (Err(_), _) => break,
                }
            }
            lock(&self.idle).push(workspace);
        });
        let mut left = left.into_inner().unwrap_or_else(PoisonError::into_inner)?;
        left.sort_unstable();
        Ok(left)
    }

    fn take_workspace(&self) -> Workspace {
        lock(&self.idle).pop().unwrap_or_default()
    }

    fn encode_chunk<T: TokenId>(
        &self,
        texts: &[Option<&str>],
        input: Input,
        width: usize,
        chunk: Chunk<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<Vec<usize>> {
        let mut left = Vec::new();
        let Chunk {
            first,
            ids,
            lengths,
        } = chunk;
        let texts = &texts[first..first + lengths.len()];
        for (index, ((text, ids), length)) in texts
            .iter()
            .zip(ids.chunks_mut(width))
            .zip(lengths)
            .enumerate()
        {
            let Some(text) = text else {
                left.push(first + index);
                continue;
            };
            workspace.reserve(text)?;
            let mut row = Row::new(&mut ids[1..width - 1]);
            if !self.encode_text(text, input, workspace, &mut row) {
                left.push(first + index);
                continue;
            }
            let used = row.used();
            ids[0] = T::from_id(self.start);
            ids[used + 1] = T::from_id(self.end);
            ids[used + 2..].fill(T::from_id(self.pad));
            *length = used as i64 + 2;
        }
        Ok(left)
    }

    #[inline(always)]
    fn encode_text<T: TokenId>(
        &self,
        text: &str,
        input: Input,
        workspace: &mut Workspace,
        row: &mut Row<'_, T>,
    ) -> bool {
        let Workspace {
            buffer,
            cleaned,
            cache,
            bpe,
            ..
        } = workspace;
        match &self.model {
            Model::Clip(model) if input == Input::Pieces => {
                model.encode_pieces(text, bpe, cache, row)
            }
            Model::Clip(model) => return model.encode(text, buffer, bpe, cache, row),
            Model::Bert(model) => model.encode(text, buffer, cleaned, cache, row),
            Model::Words(model) => model.encode(text, buffer, cleaned, cache, row),
        }
        true
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_do_not_depend_on_the_threads() {
        let tokenizer = Tokenizer::words(&["dog", "cat", "runs"]).unwrap();
        let texts: Vec<String> = (0..5000)
            .map(|row| "dog runs cat bird ".repeat(row % 7))
            .collect();
        let texts: Vec<Option<&str>> = texts.iter().map(|text| Some(text.as_str())).collect();
        let (width, rows) = (9, texts.len());
        let (mut one, mut many) = (vec![9i32; rows * width], vec![8i32; rows * width]);
        let (mut one_lengths, mut many_lengths) = (vec![0; rows], vec![1; rows]);
        assert!(tokenizer
            .encode(&texts, Input::Texts, &mut one, &mut one_lengths, 1)
            .unwrap()
            .is_empty());
        assert!(tokenizer
            .encode(&texts, Input::Texts, &mut many, &mut many_lengths, 5)
            .unwrap()
            .is_empty());
        assert_eq!(one, many);
        assert_eq!(one_lengths, many_lengths);
        assert_eq!(one[..9], [2, 3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(one[3 * 9..4 * 9], [2, 4, 6, 5, 1, 4, 6, 5, 3]);
    }
}
