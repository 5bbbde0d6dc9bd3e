//! Huffman tables as files define them, with the larger tables made of them: `pairs.rs` for decoding, `skip.rs` for skipping.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;

use super::codes::Codes;
use super::pairs::Pairs;
use super::skip::Skip;
use crate::error::Result;

/// Tables that a thread keeps: most files use the standard four, and with what is made of them each takes some microseconds.
const KEPT: usize = 8;

thread_local! {
    /// The newest last.
    static TABLES: RefCell<Vec<Rc<Table>>> = const { RefCell::new(Vec::new()) };
}

/// A table of a DHT segment.
pub struct Table {
    /// For one code at a time.
    pub codes: Codes,
    again: Cell<bool>,
    /// Built when first asked for.
    pairs: OnceCell<Pairs>,
    skip: OnceCell<Skip>,
    /// The segment: number of codes of each length, symbols, class.
    counts: [u8; 16],
    symbols: Vec<u8>,
    dc: bool,
}

impl Table {
    /// The table of [`Codes::new`], which may have been made before.
    pub fn kept(counts: &[u8; 16], symbols: &[u8], dc: bool) -> Result<Rc<Table>> {
        TABLES.with_borrow_mut(|tables| {
            let same = |table: &Rc<Table>| {
                (table.counts, table.dc) == (*counts, dc) && symbols.starts_with(&table.symbols)
            };
            let table = match tables.iter().position(same) {
                Some(index) => {
                    tables[index].again.set(true);
                    tables.remove(index)
                }
                None => {
                    let codes = Codes::new(counts, symbols, dc)?;
                    let total: usize = counts.iter().map(|&count| usize::from(count)).sum();
                    Rc::new(Table {
                        codes,
                        again: Cell::new(false),
                        pairs: OnceCell::new(),
                        skip: OnceCell::new(),
                        counts: *counts,
                        symbols: symbols[..total].to_vec(),
                        dc,
                    })
                }
            };
            if tables.len() == KEPT {
                tables.remove(0);
            }
            tables.push(Rc::clone(&table));
            Ok(table)
        })
    }

    /// Its table of two codes at a time.
    pub fn pairs(&self) -> &Pairs {
        self.pairs.get_or_init(|| Pairs::new(&self.codes))
    }

    /// Its table for passing over coefficients.
    pub fn skip(&self) -> &Skip {
        self.skip.get_or_init(|| Skip::new(&self.codes))
    }

    /// Whether the table was asked for before: building the larger tables then pays off, as more such files may come.
    pub fn again(&self) -> bool {
        self.again.get()
    }
}
