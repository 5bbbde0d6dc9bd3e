//! Moments of one block of values, in one pass: sums and sums of squares of what is left of a shift, and the extremes.
//!
//! d = x - c with c a value of the block, so that sums lose no digits to a large mean: mean = c + (sum d) / n,
//! m2 = sum d² - (sum d)² / n. Eight values of a column's neighbours make a tile; blocks are short enough that rounding
//! does not add up. Both depend on the data's shape alone.

use pulp::{f32x8, f64x4};

use super::moments::Column;
use super::wide::{Wide, Work};

/// Values that one tile takes.
const TILE: usize = 8;
/// Values of a column of scalars that share a shift.
pub const BLOCK: usize = 4096;
/// Bytes, whose sums are exact: as many as 32 bits hold the squares of.
const BYTES: usize = 1 << 15;
/// Rows of a table that share a shift.
const ROWS: usize = 512;
/// Rows that a tile takes while its sums are in registers.
const GROUP: usize = 8;

/// An element type of the input.
pub trait Value: Copy + PartialOrd + Send + Sync + Sized + 'static {
    /// Eight of them, where they are compared.
    type Eight: Copy;
    /// As float64, exactly.
    fn wide(self) -> f64;
    /// Eight equal ones.
    fn eight(self) -> Self::Eight;
    /// Eight values one after the other.
    fn load(values: &[Self; TILE]) -> Self::Eight;
    /// The other way.
    fn store(eight: Self::Eight) -> [Self; TILE];
    /// As float64, exactly.
    fn widen<W: Wide>(wide: W, values: &[Self; TILE]) -> [f64x4; 2];
    /// The lesser of each two.
    fn min<W: Wide>(wide: W, a: Self::Eight, b: Self::Eight) -> Self::Eight;
    /// The greater of each two.
    fn max<W: Wide>(wide: W, a: Self::Eight, b: Self::Eight) -> Self::Eight;
    /// Moments of a block of one column, which is not empty; how long it may be is `block_length`.
    fn column<W: Wide>(wide: W, values: &[Self]) -> Column;
    /// See `column`.
    fn block_length() -> usize {
        BLOCK
    }
}

impl Value for f32 {
    type Eight = f32x8;

    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }

    #[inline(always)]
    fn eight(self) -> f32x8 {
        pulp::cast([self; TILE])
    }

    #[inline(always)]
    fn load(values: &[f32; TILE]) -> f32x8 {
        pulp::cast(*values)
    }

    #[inline(always)]
    fn store(eight: f32x8) -> [f32; TILE] {
        pulp::cast(eight)
    }

    #[inline(always)]
    fn widen<W: Wide>(wide: W, values: &[f32; TILE]) -> [f64x4; 2] {
        wide.widen(values)
    }

    #[inline(always)]
    fn min<W: Wide>(wide: W, a: f32x8, b: f32x8) -> f32x8 {
        wide.min32(a, b)
    }

    #[inline(always)]
    fn max<W: Wide>(wide: W, a: f32x8, b: f32x8) -> f32x8 {
        wide.max32(a, b)
    }

    #[inline(always)]
    fn column<W: Wide>(wide: W, values: &[f32]) -> Column {
        column::<W, f32, 2>(wide, values)
    }
}

impl Value for f64 {
    type Eight = [f64x4; 2];

    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }

    #[inline(always)]
    fn eight(self) -> [f64x4; 2] {
        pulp::cast([self; TILE])
    }

    #[inline(always)]
    fn load(values: &[f64; TILE]) -> [f64x4; 2] {
        pulp::cast(*values)
    }

    #[inline(always)]
    fn store(eight: [f64x4; 2]) -> [f64; TILE] {
        pulp::cast(eight)
    }

    #[inline(always)]
    fn widen<W: Wide>(_: W, values: &[f64; TILE]) -> [f64x4; 2] {
        pulp::cast(*values)
    }

    #[inline(always)]
    fn min<W: Wide>(wide: W, a: [f64x4; 2], b: [f64x4; 2]) -> [f64x4; 2] {
        [wide.min64(a[0], b[0]), wide.min64(a[1], b[1])]
    }

    #[inline(always)]
    fn max<W: Wide>(wide: W, a: [f64x4; 2], b: [f64x4; 2]) -> [f64x4; 2] {
        [wide.max64(a[0], b[0]), wide.max64(a[1], b[1])]
    }

    #[inline(always)]
    fn column<W: Wide>(wide: W, values: &[f64]) -> Column {
        column::<W, f64, 1>(wide, values)
    }
}

impl Value for u8 {
    type Eight = [u8; TILE];

    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }

    #[inline(always)]
    fn eight(self) -> [u8; TILE] {
        [self; TILE]
    }

    #[inline(always)]
    fn load(values: &[u8; TILE]) -> [u8; TILE] {
        *values
    }

    #[inline(always)]
    fn store(eight: [u8; TILE]) -> [u8; TILE] {
        eight
    }

    #[inline(always)]
    fn widen<W: Wide>(wide: W, values: &[u8; TILE]) -> [f64x4; 2] {
        wide.widen(&values.map(f32::from))
    }

    #[inline(always)]
    fn min<W: Wide>(_: W, a: [u8; TILE], b: [u8; TILE]) -> [u8; TILE] {
        std::array::from_fn(|lane| a[lane].min(b[lane]))
    }

    #[inline(always)]
    fn max<W: Wide>(_: W, a: [u8; TILE], b: [u8; TILE]) -> [u8; TILE] {
        std::array::from_fn(|lane| a[lane].max(b[lane]))
    }

    fn block_length() -> usize {
        BYTES
    }

    /// Whole numbers: the sums are exact.
    #[inline(always)]
    fn column<W: Wide>(_: W, values: &[u8]) -> Column {
        let (mut sum, mut squares) = (0_u32, 0_u32);
        for &value in values {
            sum += u32::from(value);
            squares += u32::from(value) * u32::from(value);
        }
        let (mut min, mut max) = (u8::MAX, 0);
        for &value in values {
            min = min.min(value);
            max = max.max(value);
        }
        let count = values.len() as u64;
        let (sum, squares) = (u64::from(sum), u64::from(squares));
        Column {
            mean: sum as f64 / count as f64,
            m2: (count * squares - sum * sum) as f64 / count as f64,
            min: f64::from(min),
            max: f64::from(max),
        }
    }
}

/// The sums of eight lanes.
#[derive(Clone, Copy)]
struct Tile<E> {
    sums: [f64x4; 2],
    squares: [f64x4; 2],
    low: E,
    high: E,
}

impl<E: Copy> Tile<E> {
    #[inline(always)]
    fn new(low: E, high: E) -> Self {
        let zero = f64x4(0.0, 0.0, 0.0, 0.0);
        Tile {
            sums: [zero; 2],
            squares: [zero; 2],
            low,
            high,
        }
    }

    #[inline(always)]
    fn add<W: Wide, V: Value<Eight = E>>(
        &mut self,
        wide: W,
        values: &[V; TILE],
        shift: [f64x4; 2],
    ) {
        let x = V::widen(wide, values);
        for half in 0..2 {
            let d = wide.less(x[half], shift[half]);
            self.sums[half] = wide.plus(self.sums[half], d);
            self.squares[half] = wide.plus_square(self.squares[half], d);
        }
        let x = V::load(values);
        self.low = V::min(wide, x, self.low);
        self.high = V::max(wide, x, self.high);
    }
}

/// What a run of values amounts to, less a shift.
struct Sum<V> {
    sum: f64,
    squares: f64,
    low: V,
    high: V,
}

impl<V: Value> Sum<V> {
    #[inline(always)]
    fn add(&mut self, value: V, shift: f64) {
        let d = value.wide() - shift;
        self.sum += d;
        self.squares = d.mul_add(d, self.squares);
        self.include(value, value);
    }

    #[inline(always)]
    fn include(&mut self, low: V, high: V) {
        self.low = if low < self.low { low } else { self.low };
        self.high = if high > self.high { high } else { self.high };
    }

    /// The moments of `count` values; `any_nan` says whether one of them is not a number.
    #[inline(always)]
    fn column(&self, count: usize, shift: f64, any_nan: impl FnOnce() -> bool) -> Column {
        let n = count as f64;
        let m2 = self.squares - self.sum * self.sum / n;
        let nan = self.sum.is_nan() && any_nan();
        Column {
            mean: shift + self.sum / n,
            // Rounding may leave a tiny negative number; NaN stays NaN.
            m2: if m2 < 0.0 { 0.0 } else { m2 },
            min: if nan { f64::NAN } else { self.low.wide() },
            max: if nan { f64::NAN } else { self.high.wide() },
        }
    }
}

/// Moments of one column, `T` tiles side by side: enough to hide the latency of additions, few enough for the registers.
#[inline(always)]
fn column<W: Wide, V: Value, const T: usize>(wide: W, values: &[V]) -> Column {
    let first = values[0];
    let shift = first.wide();
    let shifts = pulp::cast([shift; TILE]);
    let mut tiles = [Tile::new(first.eight(), first.eight()); T];
    let (whole, rest) = values.as_chunks::<TILE>();
    let (runs, odd) = whole.as_chunks::<T>();
    for run in runs {
        for (tile, values) in tiles.iter_mut().zip(run) {
            tile.add(wide, values, shifts);
        }
    }
    for (tile, values) in tiles.iter_mut().zip(odd) {
        tile.add(wide, values, shifts);
    }
    let mut all = Sum {
        sum: 0.0,
        squares: 0.0,
        low: first,
        high: first,
    };
    for tile in tiles {
        all.sum += total(wide, tile.sums);
        all.squares += total(wide, tile.squares);
        let (low, high) = (V::store(tile.low), V::store(tile.high));
        for lane in 0..TILE {
            all.include(low[lane], high[lane]);
        }
    }
    for &value in rest {
        all.add(value, shift);
    }
    all.column(values.len(), shift, || {
        values.iter().any(|value| value.wide().is_nan())
    })
}

#[inline(always)]
fn total<W: Wide>(wide: W, sums: [f64x4; 2]) -> f64 {
    let f64x4(a, b, c, d) = wide.plus(sums[0], sums[1]);
    (a + c) + (b + d)
}

/// Moments of whole rows of several columns, added to `columns` (of `count` rows so far) block by block.
pub struct Table<'a, V> {
    /// The rows, one after the other.
    pub values: &'a [V],
    /// What to add to, one a column.
    pub columns: &'a mut [Column],
}

impl<V: Value> Work for Table<'_, V> {
    type Output = ();

    /// Rows of few columns are taken several at a time, as if they were one, so that tiles are full.
    #[inline(always)]
    fn run<W: Wide>(self, wide: W) {
        let width = self.columns.len();
        let mut joined = 1;
        while width < 256 && (!(joined * width).is_multiple_of(TILE) || joined * width < 64) {
            joined += 1;
        }
        let long = width * joined;
        let blank = V::eight(self.values[0]);
        let mut tiles = vec![Tile::new(blank, blank); long / TILE];
        let mut shifts = vec![0.0; long];
        let mut sums = Vec::with_capacity(width);
        let mut count = 0;
        for block in self.values.chunks(ROWS * long) {
            let first = &block[..width];
            for (shift, value) in shifts.iter_mut().zip(first.iter().cycle()) {
                *shift = value.wide();
            }
            sums.clear();
            sums.extend(first.iter().map(|&value| Sum {
                sum: 0.0,
                squares: 0.0,
                low: value,
                high: value,
            }));
            let (wide_rows, rest) = block.split_at(block.len() / long * long);
            if !wide_rows.is_empty() {
                self::rows(wide, wide_rows, long, &shifts, &mut tiles);
                for (index, tile) in tiles.iter().enumerate() {
                    let sum: [f64; TILE] = pulp::cast(tile.sums);
                    let squares: [f64; TILE] = pulp::cast(tile.squares);
                    let (low, high) = (V::store(tile.low), V::store(tile.high));
                    for lane in 0..TILE {
                        let column = &mut sums[(index * TILE + lane) % width];
                        column.sum += sum[lane];
                        column.squares += squares[lane];
                        column.include(low[lane], high[lane]);
                    }
                }
            }
            // Columns that fill no tile, and rows that are too few to be joined.
            for row in wide_rows.chunks_exact(long) {
                for (column, &value) in row.iter().enumerate().skip(long / TILE * TILE) {
                    sums[column].add(value, shifts[column]);
                }
            }
            for row in rest.chunks_exact(width) {
                for (column, &value) in row.iter().enumerate() {
                    sums[column].add(value, shifts[column]);
                }
            }
            let rows = block.len() / width;
            for (index, (column, sum)) in self.columns.iter_mut().zip(&sums).enumerate() {
                let values = block.iter().skip(index).step_by(width);
                let part = sum.column(rows, shifts[index], || {
                    values.copied().any(|value| value.wide().is_nan())
                });
                column.merge(count, &part, rows as u64);
            }
            count += rows as u64;
        }
    }
}

/// The sums of every eight columns of whole rows of `width` values; some rows at a time, so that memory is read in order.
#[inline(always)]
fn rows<W: Wide, V: Value>(
    wide: W,
    values: &[V],
    width: usize,
    shifts: &[f64],
    tiles: &mut [Tile<V::Eight>],
) {
    let (first, _) = values[..width].as_chunks::<TILE>();
    for (tile, first) in tiles.iter_mut().zip(first) {
        *tile = Tile::new(V::load(first), V::load(first));
    }
    let (shifts, _) = shifts.as_chunks::<TILE>();
    for group in values.chunks(GROUP * width) {
        for (index, (tile, &shift)) in tiles.iter_mut().zip(shifts).enumerate() {
            let shift = pulp::cast(shift);
            let mut sums = *tile;
            for row in group.chunks_exact(width) {
                let (row, _) = row.as_chunks::<TILE>();
                sums.add(wide, &row[index], shift);
            }
            *tile = sums;
        }
    }
}

/// Moments of one column, added to `column` block by block.
pub struct Scalars<'a, V> {
    /// The values.
    pub values: &'a [V],
    /// What to add to; empty before.
    pub column: &'a mut Column,
}

impl<V: Value> Work for Scalars<'_, V> {
    type Output = ();

    #[inline(always)]
    fn run<W: Wide>(self, wide: W) {
        let mut count = 0;
        for block in self.values.chunks(V::block_length()) {
            let part = V::column(wide, block);
            self.column.merge(count, &part, block.len() as u64);
            count += block.len() as u64;
        }
    }
}
