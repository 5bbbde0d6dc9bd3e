//! One row of the output: the ids of one text, cut where the row ends.

/// An integer type for token ids.
pub trait TokenId: Copy + Send {
    /// The id as this type; ids are below 2³¹.
    fn from_id(id: u32) -> Self;
}

impl TokenId for i32 {
    #[inline(always)]
    fn from_id(id: u32) -> Self {
        id as i32
    }
}

impl TokenId for i64 {
    #[inline(always)]
    fn from_id(id: u32) -> Self {
        i64::from(id)
    }
}

/// The tokens of one text between its start and its end mark; tokens that do not fit are dropped.
pub struct Row<'a, T> {
    ids: &'a mut [T],
    used: usize,
}

impl<'a, T: TokenId> Row<'a, T> {
    /// An empty row that may fill all of `ids`.
    pub fn new(ids: &'a mut [T]) -> Self {
        Self { ids, used: 0 }
    }

    /// The number of ids in the row.
    #[inline(always)]
    pub fn used(&self) -> usize {
        self.used
    }

    /// Whether further ids would be dropped.
    #[inline(always)]
    pub fn is_full(&self) -> bool {
        self.used == self.ids.len()
    }

    /// Append one id.
    #[inline(always)]
    pub fn push(&mut self, id: u32) {
        if let Some(place) = self.ids.get_mut(self.used) {
            *place = T::from_id(id);
            self.used += 1;
        }
    }

    /// Append the first `count` of three ids. If all three fit they are all written, which is faster than a loop.
    #[inline(always)]
    pub fn push_short(&mut self, ids: &[u32; 3], count: usize) {
        if let Some(places) = self.ids.get_mut(self.used..self.used + 3) {
            places[0] = T::from_id(ids[0]);
            places[1] = T::from_id(ids[1]);
            places[2] = T::from_id(ids[2]);
            self.used += count;
        } else {
            self.push_all(&ids[..count]);
        }
    }

    /// Append as many of the ids as fit.
    pub fn push_all(&mut self, ids: &[u32]) {
        for &id in ids {
            self.push(id);
        }
    }
}
