//! A look at a plugin's bytes before anything else is done with them: what is in it, and whether that is so much, or so
//! intricate, that to read or compile it could take minutes, fill the memory or overflow the stack. What follows it
//! (validation, the encoder of components, the compiler) is made for what compilers write, and has no bounds of its own, or
//! far wider ones.
//!
//! The limits are several times what the largest real plugins have (a Python runtime, a JavaScript engine).

use wasmparser::{
    BinaryReader, ComponentInstance, ComponentType, ComponentTypeDeclaration, Encoding, FunctionBody, Instance,
    Operator, Parser, Payload,
};

use super::compile::LoadError;
use super::memory::{MEMORIES_DECLARED_MAX, TABLE_ELEMENTS_MAX, TABLES_MAX};

/// The openers of a component type and of an instance type: the only types that contain others.
const COMPONENT_TYPE: u8 = 0x41;
const INSTANCE_TYPE: u8 = 0x42;
/// The declaration, within such a type, of another type.
const TYPE_DECLARATION: u8 = 0x01;

/// What a plugin has of everything that costs something to read or to compile. Sums over all its modules and components,
/// but for what is said to be the most of one function.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Scan {
    modules: u64,
    components: u64,
    /// Components within components.
    nesting: u64,
    /// Instances that instantiating it makes, at most.
    instances: u64,
    /// Types within types.
    type_nesting: u64,
    types: u64,
    /// Imports, exports, aliases and canonical functions.
    names: u64,
    functions: u64,
    globals: u64,
    tables: u64,
    /// That tables begin with.
    table_elements: u64,
    memories: u64,
    /// Data and element segments.
    segments: u64,
    code: u64,
    /// The longest function, bytes.
    function: u64,
    /// The most locals of one function.
    locals: u64,
    /// The most blocks within blocks of one function.
    blocks_within: u64,
    /// The most loops within loops of one function: what is live in the innermost is kept apart in each.
    loops_within: u64,
    /// Locals times branches, each of which counts once more for every loop that it is in: what the compiler has to keep apart,
    /// and for how many ways. The most of one function, and of all.
    entangled: u64,
    entangled_in_all: u64,
    /// The most of one function: operations on whole ranges of memories and tables, each of which may take as long as the memory
    /// is large and cannot be interrupted.
    bulk: u64,
}

/// How much there is of something, the most, and its name.
type Limit = (fn(&Scan) -> u64, u64, &'static str);

#[rustfmt::skip]
const LIMITS: &[Limit] = &[
    (|has| has.modules, 256, "modules"),
    (|has| has.components, 1_000, "components"),
    (|has| has.nesting, 16, "components within each other"),
    (|has| has.instances, 1_000, "instances"),
    (|has| has.type_nesting, 32, "types within each other"),
    (|has| has.types, 100_000, "types"),
    (|has| has.names, 200_000, "imports, exports and aliases"),
    (|has| has.functions, 200_000, "functions"),
    (|has| has.globals, 100_000, "globals"),
    (|has| has.tables, TABLES_MAX as u64, "tables"),
    (|has| has.table_elements, TABLE_ELEMENTS_MAX as u64, "elements that its tables begin with"),
    (|has| has.memories, MEMORIES_DECLARED_MAX as u64, "memories"),
    (|has| has.segments, 200_000, "segments of data and elements"),
    (|has| has.code, 64 << 20, "bytes of code"),
    (|has| has.function, 1 << 20, "bytes of code in one function"),
    (|has| has.locals, 10_000, "locals in one function"),
    (|has| has.blocks_within, 4_000, "blocks within each other"),
    (|has| has.loops_within, 64, "loops within each other"),
    (|has| has.entangled, 4_000_000, "as the product of locals and branches in one function"),
    (|has| has.entangled_in_all, 100_000_000, "as the products of locals and branches in all functions"),
    (|has| has.bulk, 1_000, "operations on whole memories or tables in one function"),
];

/// Refuses a plugin of which there is too much.
///
/// # Errors
/// [`LoadError::TooMuch`], with what and how much; [`LoadError::Invalid`] where it cannot even be read.
pub(super) fn check(bytes: &[u8]) -> Result<(), LoadError> {
    Scan::of(bytes).map(drop)
}

/// Why a scan ends early.
enum Refused {
    Broken(wasmparser::BinaryReaderError),
    TooMuch { what: &'static str, found: u64, most: u64 },
}

impl From<wasmparser::BinaryReaderError> for Refused {
    fn from(error: wasmparser::BinaryReaderError) -> Self {
        Self::Broken(error)
    }
}

impl Scan {
    fn of(bytes: &[u8]) -> Result<Self, LoadError> {
        let mut scan = Self::default();
        scan.read(bytes, &mut 0, true).map(|()| scan).map_err(|refused| match refused {
            Refused::Broken(error) => LoadError::Invalid(error.to_string()),
            Refused::TooMuch { what, found, most } => LoadError::TooMuch { what: what.into(), found, most },
        })
    }

    fn within_limits(&self) -> Result<(), Refused> {
        match LIMITS.iter().find(|(of, most, _)| of(self) > *most) {
            Some((of, most, what)) => Err(Refused::TooMuch { what, found: of(self), most: *most }),
            None => Ok(()),
        }
    }

    /// `largest` is the most instances that one component read so far makes: who instantiates another makes at most as many.
    fn read(&mut self, bytes: &[u8], largest: &mut u64, is_plugin: bool) -> Result<(), Refused> {
        // The components and modules that enclose the present section, and what each component makes.
        let mut within: Vec<(Encoding, u64)> = Vec::new();
        for payload in Parser::new(0).parse_all(bytes) {
            match payload? {
                Payload::Version { encoding, .. } => {
                    within.push((encoding, 0));
                    match encoding {
                        Encoding::Module => self.modules += 1,
                        Encoding::Component => self.components += 1,
                    }
                    self.nesting = self.nesting.max(within.len() as u64);
                }
                Payload::End(_) => {
                    if let Some((Encoding::Component, makes)) = within.pop() {
                        *largest = (*largest).max(makes);
                    }
                }
                Payload::InstanceSection(section) => {
                    for instance in section {
                        let makes = u64::from(matches!(instance?, Instance::Instantiate { .. }));
                        self.makes(&mut within, makes);
                    }
                }
                Payload::ComponentInstanceSection(section) => {
                    for instance in section {
                        let is_one = matches!(instance?, ComponentInstance::Instantiate { .. });
                        self.makes(&mut within, if is_one { largest.saturating_add(1) } else { 0 });
                    }
                }
                Payload::ComponentTypeSection(section) => {
                    let range = section.range();
                    let mut reader = BinaryReader::new(&bytes[range.clone()], range.start);
                    for _ in 0..reader.read_var_u32()? {
                        self.component_type(&mut reader, 1)?;
                    }
                }
                // The type of a module that is to become a component: itself a component, whose own sections like this nobody reads.
                Payload::CustomSection(section) if is_plugin && section.name().starts_with("component-type") => {
                    self.read(section.data(), largest, false)?;
                }
                Payload::CodeSectionEntry(body) => self.function(&body)?,
                Payload::TableSection(section) => {
                    for table in section {
                        self.tables += 1;
                        self.table_elements = self.table_elements.saturating_add(table?.ty.initial);
                    }
                }
                other => self.count(&other),
            }
            self.within_limits()?;
        }
        Ok(())
    }

    /// What a section says that it holds.
    fn count(&mut self, payload: &Payload<'_>) {
        let (of, count) = match payload {
            Payload::TypeSection(section) => (&mut self.types, section.count()),
            Payload::CoreTypeSection(section) => (&mut self.types, section.count()),
            Payload::ImportSection(section) => (&mut self.names, section.count()),
            Payload::ExportSection(section) => (&mut self.names, section.count()),
            Payload::ComponentImportSection(section) => (&mut self.names, section.count()),
            Payload::ComponentExportSection(section) => (&mut self.names, section.count()),
            Payload::ComponentAliasSection(section) => (&mut self.names, section.count()),
            Payload::ComponentCanonicalSection(section) => (&mut self.names, section.count()),
            Payload::FunctionSection(section) => (&mut self.functions, section.count()),
            Payload::GlobalSection(section) => (&mut self.globals, section.count()),
            Payload::MemorySection(section) => (&mut self.memories, section.count()),
            Payload::DataSection(section) => (&mut self.segments, section.count()),
            Payload::ElementSection(section) => (&mut self.segments, section.count()),
            Payload::CodeSectionStart { size, .. } => (&mut self.code, *size),
            _ => return,
        };
        *of += u64::from(count);
    }

    fn makes(&mut self, within: &mut [(Encoding, u64)], instances: u64) {
        if let Some((_, makes)) = within.last_mut() {
            *makes = makes.saturating_add(instances);
            self.instances = self.instances.max(*makes);
        }
    }

    /// Reads a type one level at a time: the reader of types goes down as deep as they are nested, whatever the stack holds.
    fn component_type(&mut self, reader: &mut BinaryReader<'_>, depth: u64) -> Result<(), Refused> {
        self.types += 1;
        self.type_nesting = self.type_nesting.max(depth);
        self.within_limits()?;
        if !matches!(peek(reader)?, COMPONENT_TYPE | INSTANCE_TYPE) {
            reader.read::<ComponentType<'_>>()?;
            return Ok(());
        }
        reader.read_u8()?;
        for _ in 0..reader.read_var_u32()? {
            if peek(reader)? == TYPE_DECLARATION {
                reader.read_u8()?;
                self.component_type(reader, depth + 1)?;
            } else {
                reader.read::<ComponentTypeDeclaration<'_>>()?;
                self.names += 1;
            }
        }
        Ok(())
    }

    fn function(&mut self, body: &FunctionBody<'_>) -> Result<(), Refused> {
        self.function = self.function.max(body.range().len() as u64);
        let mut locals: u64 = 0;
        for group in body.get_locals_reader()? {
            locals = locals.saturating_add(u64::from(group?.0));
        }
        self.locals = self.locals.max(locals);
        // (the rest of it may be too long to be worth a look)
        self.within_limits()?;
        let (mut branches, mut bulk) = (0_u64, 0_u64);
        // Whether each block that encloses the operation is a loop, and how many are.
        let (mut blocks, mut loops) = (Vec::new(), 0_u64);
        for operator in body.get_operators_reader()? {
            match operator? {
                operator @ (Operator::Block { .. }
                | Operator::Loop { .. }
                | Operator::If { .. }
                | Operator::TryTable { .. }) => {
                    let is_loop = matches!(operator, Operator::Loop { .. });
                    blocks.push(is_loop);
                    loops += u64::from(is_loop);
                    branches += 1 + loops;
                    self.blocks_within = self.blocks_within.max(blocks.len() as u64);
                    self.loops_within = self.loops_within.max(loops);
                }
                Operator::End => loops -= u64::from(blocks.pop() == Some(true)),
                Operator::Else | Operator::Br { .. } | Operator::BrIf { .. } => branches += 1 + loops,
                Operator::BrTable { targets } => branches += u64::from(targets.len()) * (1 + loops),
                Operator::MemoryFill { .. }
                | Operator::MemoryCopy { .. }
                | Operator::MemoryInit { .. }
                | Operator::TableFill { .. }
                | Operator::TableCopy { .. }
                | Operator::TableInit { .. }
                | Operator::TableGrow { .. } => bulk += 1,
                _ => {}
            }
        }
        let entangled = locals.saturating_mul(branches);
        self.entangled = self.entangled.max(entangled);
        self.entangled_in_all = self.entangled_in_all.saturating_add(entangled);
        self.bulk = self.bulk.max(bulk);
        Ok(())
    }
}

fn peek(reader: &BinaryReader<'_>) -> Result<u8, Refused> {
    Ok(reader.clone().read_u8()?)
}
