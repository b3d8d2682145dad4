//! Which line of an author's source a guest was at, from the tables of lines that a plugin may carry (DWARF's `.debug_line`).
//!
//! Read here rather than by wasmtime, which looks into all that DWARF can hold: a stranger's debug information is as hostile
//! as his code, and what reads it has no deadline. Tables of lines are flat, so their size bounds the work of one search, and
//! a budget that of all searches for one plugin.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use gimli::{
    AttributeValue, DebugLine, DebugLineOffset, EndianSlice, LineProgramHeader, LineRow, LittleEndian, Reader,
};
use wasmparser::{Encoding, Parser, Payload};

/// The most bytes of tables that are kept of a plugin; one with more has none.
const TABLES_MAX: usize = 16 << 20;
/// The longest header of one table, bytes: it lists the files of a unit, and each becomes many times its size when read.
const HEADER_MAX: u32 = 64 << 10;
/// The most places that are remembered, so that faults that come again and again cost no second search.
const PLACES_MAX: usize = 1_024;

/// What all searches for one plugin may read, bytes: a fraction of a second, however many places it traps at. From then on
/// its places are told by name alone, but for those that are remembered.
const SEARCHED_MAX: usize = 4 * TABLES_MAX;

/// The longest part of a path that is told, bytes.
const PATH_MAX: usize = 256;

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// The tables of lines of all modules in one plugin.
#[derive(Debug, Default)]
pub(super) struct Lines {
    modules: Vec<Module>,
    known: Mutex<Known>,
}

/// What was found so far.
#[derive(Debug)]
struct Known {
    places: HashMap<u64, Option<String>>,
    /// What searches may still read, bytes.
    budget: usize,
}

impl Default for Known {
    fn default() -> Self {
        Self { places: HashMap::new(), budget: SEARCHED_MAX }
    }
}

#[derive(Debug, Default)]
struct Module {
    /// Where its code lies in the component; the tables count from its start.
    code: Range<u64>,
    lines: Box<[u8]>,
    strings: Box<[u8]>,
    line_strings: Box<[u8]>,
}

impl Lines {
    /// Those that a component carries. What cannot be read is left out: nobody's records depend on it.
    pub(super) fn of(component: &[u8]) -> Self {
        let mut modules = Vec::new();
        // The modules and components that enclose the present section; components have no tables.
        let mut within: Vec<Option<Module>> = Vec::new();
        let mut size = 0;
        for payload in Parser::new(0).parse_all(component) {
            match payload {
                Ok(Payload::Version { encoding, .. }) => {
                    within.push((encoding == Encoding::Module).then(Module::default));
                }
                Ok(Payload::CodeSectionStart { range, .. }) => {
                    if let Some(Some(module)) = within.last_mut() {
                        module.code = range.start as u64..range.end as u64;
                    }
                }
                Ok(Payload::CustomSection(section)) => {
                    let Some(Some(module)) = within.last_mut() else { continue };
                    let place = match section.name() {
                        ".debug_line" => &mut module.lines,
                        ".debug_str" => &mut module.strings,
                        ".debug_line_str" => &mut module.line_strings,
                        _ => continue,
                    };
                    size += section.data().len();
                    if size > TABLES_MAX {
                        return Self::default();
                    }
                    *place = section.data().into();
                }
                Ok(Payload::End(_)) => modules.extend(within.pop().flatten().filter(|module| !module.lines.is_empty())),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        Self { modules, known: Mutex::default() }
    }

    /// `file:line` of the instruction that begins at this offset of the component, where the plugin's budget lasts.
    pub(super) fn at(&self, offset: u64) -> Option<String> {
        let module = self.modules.iter().find(|module| module.code.contains(&offset))?;
        // (every change of it is complete before anything that could panic)
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = known.places.get(&offset) {
            return place.clone();
        }
        let place = module.find(offset - module.code.start, &mut known.budget).ok()?;
        if known.places.len() < PLACES_MAX {
            known.places.insert(offset, place.clone());
        }
        place
    }
}

/// A search ended before it had found anything, since nothing was left to pay for it.
#[derive(Debug, PartialEq, Eq)]
struct Exhausted;

impl Module {
    /// Looks through the tables one by one, each of which is paid for with its size before it is read.
    fn find(&self, address: u64, budget: &mut usize) -> Result<Option<String>, Exhausted> {
        let mut at = 0;
        while let Some(end) = self.end_of_table(at) {
            *budget = budget.checked_sub(end - at).ok_or(Exhausted)?;
            if let Some(found) = self.find_in_table(at, address) {
                return Ok(found);
            }
            at = end;
        }
        Ok(None)
    }

    /// None where the table does not cover the address, or cannot be read; else its place, if that can be told.
    #[expect(clippy::option_option, reason = "a place that cannot be told ends the search, too")]
    fn find_in_table(&self, at: usize, address: u64) -> Option<Option<String>> {
        let tables = DebugLine::new(&self.lines, LittleEndian);
        let program = tables.program(DebugLineOffset(at), 4, None, None).ok()?;
        let mut rows = program.rows();
        let mut before: Option<LineRow> = None;
        // What the linker has left out of the module stays in the tables, as if it began at 0.
        let mut is_left_out = false;
        while let Ok(Some((header, row))) = rows.next_row() {
            is_left_out = if before.is_none() { row.address() == 0 } else { is_left_out };
            if let Some(before) = &before
                && !is_left_out
                && (before.address()..row.address()).contains(&address)
            {
                return Some(self.place(header, before));
            }
            before = (!row.end_sequence()).then_some(*row);
        }
        None
    }

    /// Where the table that begins at `at` ends, if there is one whose header is worth reading.
    fn end_of_table(&self, at: usize) -> Option<usize> {
        let mut header = EndianSlice::new(self.lines.get(at..)?, LittleEndian);
        // (the format for tables of more than 4 GiB, which begins with the highest number, is not of this world)
        let length = header.read_u32().ok()?;
        let version = header.read_u16().ok()?;
        if version >= 5 {
            header.skip(2).ok()?;
        }
        let is_short = header.read_u32().ok()? <= HEADER_MAX;
        let end = at.checked_add(4)?.checked_add(length as usize)?;
        (is_short && end <= self.lines.len()).then_some(end)
    }

    fn place(&self, header: &LineProgramHeader<Bytes<'_>>, row: &LineRow) -> Option<String> {
        let file = row.file(header)?;
        let name = self.text(file.path_name())?;
        // (directory 0 is where the compiler ran, which tells nobody anything)
        let directory = (file.directory_index() > 0).then(|| file.directory(header)).flatten();
        let directory = directory.and_then(|directory| self.text(directory)).filter(|_| !name.starts_with('/'));
        let path = directory.map_or(name.clone(), |directory| format!("{directory}/{name}"));
        Some(row.line().map_or(path.clone(), |line| format!("{path}:{line}")))
    }

    fn text<'a>(&'a self, value: AttributeValue<Bytes<'a>>) -> Option<String> {
        let from = |section: &'a [u8], at: usize| section.get(at..)?.split(|byte| *byte == 0).next();
        let bytes = match value {
            AttributeValue::String(text) => text.slice(),
            AttributeValue::DebugStrRef(at) => from(&self.strings, at.0)?,
            AttributeValue::DebugLineStrRef(at) => from(&self.line_strings, at.0)?,
            _ => return None,
        };
        Some(String::from_utf8_lossy(&bytes[..bytes.len().min(PATH_MAX)]).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of version 4 for one file, whose rows are 2 bytes of code and 1 line apart, from `start` and line 7 on.
    fn table(start: u8, rows: u8) -> Vec<u8> {
        let header = [
            &[1, 1, 1, 0xff, 1, 10][..], // lengths, is_stmt, line_base -1, line_range 1, opcode_base 10
            &[0, 1, 1, 1, 1, 0, 0, 0, 1],
            b"src\0\0lib.rs\0\x01\0\0\0",
        ]
        .concat();
        let mut program = vec![0, 5, 2, start, 0, 0, 0, 3, 6];
        (0..rows).for_each(|_| program.extend([1, 2, 2, 3, 1]));
        program.extend([0, 1, 1]);
        let rest = [&4_u16.to_le_bytes()[..], &(header.len() as u32).to_le_bytes(), &header, &program].concat();
        [&(rest.len() as u32).to_le_bytes()[..], &rest].concat()
    }

    fn module(tables: &[Vec<u8>]) -> Module {
        Module { code: 100..200, lines: tables.concat().into(), ..Module::default() }
    }

    fn found(module: &Module, address: u64) -> Option<String> {
        module.find(address, &mut SEARCHED_MAX.clone()).expect("it is small")
    }

    #[test]
    fn what_is_searched_for_one_plugin_is_bounded_and_what_was_found_is_told_all_the_same() {
        let (one, other) = (table(10, 3), table(40, 3));
        let whole = one.len() + other.len();
        // Enough to find something in the first table, and then something in the second.
        let known = Known { budget: one.len() + whole, ..Known::default() };
        let lines = Lines { modules: vec![module(&[one, other])], known: Mutex::new(known) };
        assert_eq!(lines.at(112).as_deref(), Some("src/lib.rs:8"));
        assert_eq!(lines.at(144).as_deref(), Some("src/lib.rs:9"));
        assert_eq!(lines.known.lock().unwrap().budget, 0);
        assert_eq!((lines.at(110), lines.at(140)), (None, None), "nothing is left to search with");
        assert_eq!(lines.at(112).as_deref(), Some("src/lib.rs:8"));
        assert_eq!(lines.at(144).as_deref(), Some("src/lib.rs:9"));
    }

    #[test]
    fn places_beyond_those_that_are_remembered_are_paid_for_each_time() {
        let known =
            Known { places: (1_000..).take(PLACES_MAX).map(|place| (place, None)).collect(), ..Known::default() };
        let lines = Lines { modules: vec![module(&[table(10, 3)])], known: Mutex::new(known) };
        let size = table(10, 3).len();
        for _ in 0..SEARCHED_MAX / size {
            assert_eq!(lines.at(112).as_deref(), Some("src/lib.rs:8"));
        }
        assert_eq!(lines.at(112), None);
    }

    #[test]
    fn an_instruction_is_found_in_the_table_that_covers_it() {
        let lines =
            Lines { modules: vec![module(&[table(10, 2), table(0, 50), table(40, 3)])], known: Mutex::default() };
        for (offset, place) in [
            (110, Some("src/lib.rs:7")),
            (111, Some("src/lib.rs:7")),
            (112, Some("src/lib.rs:8")),
            (144, Some("src/lib.rs:9")),
            (144, Some("src/lib.rs:9")),
            // Between the two; and what begins at 0 was left out of the module.
            (120, None),
            (102, None),
            (5, None),
        ] {
            assert_eq!(lines.at(offset).as_deref(), place, "{offset}");
        }
    }

    #[test]
    fn tables_that_are_broken_or_made_to_fill_the_memory_are_not_read() {
        let whole = table(10, 3);
        for cut in 0..whole.len() {
            assert_eq!(found(&module(&[whole[..cut].to_vec()]), 10), None, "{cut}");
        }
        let mut long_header = whole.clone();
        long_header[6..10].copy_from_slice(&(HEADER_MAX + 1).to_le_bytes());
        assert_eq!(found(&module(&[long_header]), 10), None);
        for place in 0..whole.len() {
            for byte in [0, 1, 0x7f, 0xff] {
                let mut spoilt = whole.clone();
                spoilt[place] = byte;
                let _ = found(&module(&[spoilt]), 10);
            }
        }
    }

    #[test]
    fn a_component_without_tables_or_with_too_many_has_none() {
        assert!(Lines::of(b"\0asm\x0d\0\x01\0").modules.is_empty());
        assert!(Lines::of(b"nothing").modules.is_empty());
        let mut module = b"\0asm\x01\0\0\0\0".to_vec();
        let section = [b"\x0b.debug_line".to_vec(), vec![0; TABLES_MAX + 1]].concat();
        let mut length = section.len();
        while length >= 128 {
            module.push(length as u8 | 128);
            length >>= 7;
        }
        module.push(length as u8);
        module.extend(section);
        assert!(Lines::of(&module).modules.is_empty());
    }
}
