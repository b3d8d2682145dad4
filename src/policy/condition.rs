//! `when`: whether a record goes on to a step or a destination. CEL (<https://cel.dev>), compiled once. The only user of
//! its library.
//!
//! A condition sees the item as it now is: `key`, `value` (the JSON), `headers`, `topic`, `partition`, `offset`, `timestamp`.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SelectExpr, operators};
use cel::common::types::{CelBytes, CelInt, CelNull, CelString};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use cel::{Context, Env, ExecutionError, Program, Value};

use crate::model::{Field, Item, Items};

/// A condition. Two are the same if they are written the same.
#[derive(Clone)]
pub struct Condition(Arc<Compiled>);

struct Compiled {
    text: String,
    program: Program,
    env: Arc<Env>,
    /// Whether it asks for them.
    value: bool,
    headers: bool,
}

/// Why a text is no condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConditionError {
    /// What is wrong.
    pub message: String,
    /// Which bytes of the text are.
    pub range: Range<usize>,
}

/// What a condition may ask for, with the words for it.
pub const VARIABLES: [&str; 7] = ["key", "value", "headers", "topic", "partition", "offset", "timestamp"];

/// The longest text of a condition, bytes.
const TEXT_MAX: usize = 4096;
/// Brackets within each other: a parser calls itself for each.
const NESTING_MAX: usize = 32;
/// Parts within each other: of `a.b.c` there are three. Whoever evaluates a condition calls itself for each, on a worker's stack.
const DEPTH_MAX: usize = 64;
/// The stack for a text of `TEXT_MAX` bytes whatever it says: a chain of fields is a thousand parts within each other before
/// anybody can count them. Only what is used of it takes memory.
const COMPILE_STACK: usize = 256 << 20;

impl Condition {
    /// Compiles a condition.
    ///
    /// # Errors
    /// Everything that is wrong with it: it is not CEL, names what is not there, or cannot be true or false.
    pub fn compile(text: &str) -> Result<Self, Vec<ConditionError>> {
        let whole = |message: String| vec![ConditionError { message, range: 0..text.len() }];
        if text.len() > TEXT_MAX {
            return Err(whole(format!("it is longer than {TEXT_MAX} bytes")));
        }
        if nesting(text) > NESTING_MAX {
            return Err(whole(format!("more than {NESTING_MAX} brackets stand within each other")));
        }
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("condition".to_owned()).stack_size(COMPILE_STACK);
            let compiling = thread.spawn_scoped(scope, || Self::compile_here(text));
            let compiled = compiling.map_err(|error| whole(format!("there is no thread to read it: {error}")))?;
            compiled.join().unwrap_or_else(|_| Err(whole("it cannot be read".to_owned())))
        })
    }

    /// The same, on this thread, whose stack has to be large.
    fn compile_here(text: &str) -> Result<Self, Vec<ConditionError>> {
        let whole = |message: String| vec![ConditionError { message, range: 0..text.len() }];
        let env = Arc::new(Env::stdlib().with_optional_support(true));
        let compiled = catch_unwind(AssertUnwindSafe(|| env.compile(text)));
        let program = match compiled {
            Ok(Ok(program)) => program,
            Ok(Err(errors)) => {
                let at = |error: &cel::ParseError| offset(text, error.pos);
                let told = errors.errors.iter().map(|error| ConditionError {
                    message: error.msg.lines().next().unwrap_or_default().to_owned(),
                    range: at(error)..next(text, at(error)),
                });
                return Err(told.collect());
            }
            Err(_) => return Err(whole("it cannot be read".to_owned())),
        };
        if depth(program.expression()) > DEPTH_MAX {
            return Err(whole(format!("more than {DEPTH_MAX} of its parts stand within each other")));
        }
        let mut checker = Checker { program: &program, scope: Vec::new(), nested: false, errors: Vec::new() };
        let root = program.expression();
        let is = checker.infer(root);
        if !matches!(is, Type::Bool | Type::Dyn) {
            checker.tell(root.id, format!("it is {}, and has to be true or false", is.words()));
        }
        if !checker.errors.is_empty() {
            return Err(checker.errors);
        }
        let (value, headers) = {
            let references = program.references();
            (references.has_variable("value"), references.has_variable("headers"))
        };
        Ok(Self(Arc::new(Compiled { text: text.to_owned(), program, env, value, headers })))
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// Whether it holds for an item as it now is.
    ///
    /// # Errors
    /// It is neither true nor false: it asks for a field that is not there, or for JSON where there is none. The text names
    /// keys and types, no values.
    pub fn holds(&self, items: &Items, item: &Item, values: &mut Values) -> Result<bool, String> {
        let Compiled { program, env, value, headers, .. } = &*self.0;
        let value = if *value { Some(values.of(items, item)?) } else { None };
        let headers = headers.then(|| headers_of(items, item));
        let record = Record { items, item, value, headers };
        let mut context = Context::with_env(Arc::clone(env));
        context.set_variable_resolver(&record);
        match catch_unwind(AssertUnwindSafe(|| program.execute(&context))) {
            Ok(Ok(Value::Bool(holds))) => Ok(holds),
            Ok(Ok(other)) => Err(format!("it is {}, and has to be true or false", other.type_of())),
            Ok(Err(error)) => Err(words(&error)),
            Err(_) => Err("it cannot be evaluated".to_owned()),
        }
    }
}

impl PartialEq for Condition {
    fn eq(&self, other: &Self) -> bool {
        self.0.text == other.0.text
    }
}
impl Eq for Condition {}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Condition({:?})", self.0.text)
    }
}

/// An error without values of the record, which are nobody's business in a log.
fn words(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(key) => {
            format!("no such key: {}", key.chars().take(60).collect::<String>().escape_debug())
        }
        ExecutionError::NoSuchOverload(overload) => overload.to_string(),
        ExecutionError::UndeclaredReference(name) => format!("nothing is named {name}"),
        ExecutionError::UnexpectedType { got, want } => format!("it is {got}, and has to be {want}"),
        ExecutionError::ValuesNotComparable(one, other) => {
            format!("{} cannot be compared with {}", one.type_of(), other.type_of())
        }
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => "division by zero".to_owned(),
        ExecutionError::Overflow(..) => "a number is too large".to_owned(),
        ExecutionError::IndexOutOfBounds(_) => "an index is out of bounds".to_owned(),
        ExecutionError::FunctionError { function, .. } => format!("{function}() fails"),
        _ => "it cannot be evaluated".to_owned(),
    }
}

// ---- what it sees -----------------------------------------------------------------------

/// The JSON of values, parsed once for as long as an item keeps its value.
#[derive(Default)]
pub struct Values(HashMap<u32, (Field, Option<Box<dyn Val>>)>);

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Values({})", self.0.len())
    }
}

impl Values {
    /// A tombstone is null.
    fn of(&mut self, items: &Items, item: &Item) -> Result<&dyn Val, String> {
        let entry = self.0.entry(item.source).or_insert_with(|| (item.value, json(items.value(item))));
        if entry.0 != item.value {
            *entry = (item.value, json(items.value(item)));
        }
        entry.1.as_deref().ok_or_else(|| "the value is not JSON".to_owned())
    }
}

fn json(value: Option<&[u8]>) -> Option<Box<dyn Val>> {
    let Some(bytes) = value else { return Some(Box::new(CelNull)) };
    let json: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    as_cel(json).try_into().ok()
}

fn as_cel(json: serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(value) => Value::Bool(value),
        // (a whole number is an int as in the text of a condition, so that they compare)
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(number) => Value::Int(number),
            None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => text.into(),
        serde_json::Value::Array(list) => list.into_iter().map(as_cel).collect::<Vec<_>>().into(),
        serde_json::Value::Object(map) => {
            map.into_iter().map(|(key, value)| (key, as_cel(value))).collect::<HashMap<_, _>>().into()
        }
    }
}

/// By name; of a name that repeats, the last.
fn headers_of(items: &Items, item: &Item) -> Box<dyn Val> {
    let header = |nth| {
        let (name, value) = items.header(item, nth);
        (String::from_utf8_lossy(name).into_owned(), value.map_or(Value::Null, bytes_as_cel))
    };
    let map: HashMap<String, Value> = (0..items.header_count(item)).map(header).collect();
    let map: Result<Box<dyn Val>, _> = Value::from(map).try_into();
    map.unwrap_or_else(|_| Box::new(CelNull))
}

fn bytes_as_cel(bytes: &[u8]) -> Value {
    match str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => bytes.to_vec().into(),
    }
}

struct Record<'a> {
    items: &'a Items,
    item: &'a Item,
    value: Option<&'a dyn Val>,
    headers: Option<Box<dyn Val>>,
}

impl VariableResolver for Record<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        let source = &self.items.source;
        Some(match variable {
            "value" => CowVal::Borrowed(self.value?),
            "headers" => CowVal::Borrowed(self.headers.as_deref()?),
            "key" => match self.items.key(self.item).map(|key| (key, str::from_utf8(key))) {
                None => CowVal::owned(CelNull),
                Some((_, Ok(text))) => CowVal::owned(CelString::from(text)),
                Some((bytes, Err(_))) => CowVal::owned(CelBytes::from(bytes)),
            },
            "topic" => CowVal::owned(CelString::from(source.topic_partition().topic.as_str())),
            "partition" => CowVal::owned(CelInt::from(i64::from(source.topic_partition().partition))),
            "offset" => CowVal::owned(CelInt::from(source.offset(self.item.source as usize))),
            "timestamp" => CowVal::owned(CelInt::from(self.items.timestamp(self.item))),
            _ => return None,
        })
    }
}

// ---- what can be known beforehand ---------------------------------------------------------

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Bool,
    Int,
    Double,
    String,
    Bytes,
    List,
    Map,
    Null,
    /// Known when a record is there.
    Dyn,
}

impl Type {
    const fn words(self) -> &'static str {
        match self {
            Self::Bool => "true or false",
            Self::Int => "a whole number",
            Self::Double => "a number",
            Self::String => "text",
            Self::Bytes => "bytes",
            Self::List => "a list",
            Self::Map => "a mapping",
            Self::Null => "null",
            Self::Dyn => "a value",
        }
    }

    const fn is_number(self) -> bool {
        matches!(self, Self::Int | Self::Double)
    }

    /// Whether values of both can be equal.
    fn compares(self, other: Self) -> bool {
        self == other || self == Self::Dyn || other == Self::Dyn || self.is_number() && other.is_number()
    }
}

/// Functions and what they give. The library has no list of its own to ask.
const FUNCTIONS: [(&str, Type); 24] = [
    ("size", Type::Int),
    ("contains", Type::Bool),
    ("startsWith", Type::Bool),
    ("endsWith", Type::Bool),
    ("matches", Type::Bool),
    ("string", Type::String),
    ("bytes", Type::Bytes),
    ("int", Type::Int),
    ("uint", Type::Dyn),
    ("double", Type::Double),
    ("bool", Type::Bool),
    ("dyn", Type::Dyn),
    ("type", Type::Dyn),
    ("min", Type::Dyn),
    ("max", Type::Dyn),
    ("or", Type::Dyn),
    ("orValue", Type::Dyn),
    ("value", Type::Dyn),
    ("hasValue", Type::Bool),
    ("optional.of", Type::Dyn),
    ("optional.none", Type::Dyn),
    (operators::OPT_SELECT, Type::Dyn),
    (operators::OPT_INDEX, Type::Dyn),
    (operators::NOT_STRICTLY_FALSE, Type::Bool),
];

struct Checker<'p> {
    program: &'p Program,
    /// Variables of macros, the innermost last.
    scope: Vec<(&'p str, Type)>,
    /// Within a macro that goes through a list.
    nested: bool,
    errors: Vec<ConditionError>,
}

impl<'p> Checker<'p> {
    fn tell(&mut self, id: u64, message: String) {
        let (text, info) = (self.program.source_info().source.as_str(), self.program.source_info());
        // The last of its characters is told, too. Their numbers are those of bytes where all are ASCII.
        let range = match info.offset_for(id) {
            Some((start, last)) if text.is_ascii() && start <= last && (last as usize) < text.len() => {
                start as usize..last as usize + 1
            }
            _ => 0..text.len(),
        };
        self.errors.push(ConditionError { message, range });
    }

    fn infer(&mut self, expression: &'p IdedExpr) -> Type {
        let id = expression.id;
        match &expression.expr {
            Expr::Literal(literal) => match literal {
                LiteralValue::Boolean(_) => Type::Bool,
                LiteralValue::Bytes(_) => Type::Bytes,
                LiteralValue::Double(_) => Type::Double,
                LiteralValue::Int(_) | LiteralValue::UInt(_) => Type::Int,
                LiteralValue::Null => Type::Null,
                LiteralValue::String(_) => Type::String,
            },
            Expr::Ident(name) => self.variable(id, name),
            Expr::Select(select) => self.select(id, select),
            Expr::Call(call) => self.call(id, call),
            Expr::Comprehension(comprehension) => self.comprehension(id, comprehension),
            Expr::List(list) => {
                for element in &list.elements {
                    self.infer(element);
                }
                Type::List
            }
            Expr::Map(map) => {
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        self.infer(&entry.key);
                        self.infer(&entry.value);
                    }
                }
                Type::Map
            }
            Expr::Struct(_) | Expr::Unspecified => {
                self.tell(id, "there are no messages here".to_owned());
                Type::Dyn
            }
        }
    }

    fn variable(&mut self, id: u64, name: &str) -> Type {
        if let Some((_, known)) = self.scope.iter().rev().find(|(known, _)| *known == name) {
            return *known;
        }
        match name {
            "topic" => Type::String,
            "partition" | "offset" | "timestamp" => Type::Int,
            "headers" => Type::Map,
            "key" | "value" | "optional" => Type::Dyn,
            // (types have names, which `type(x) == string` compares)
            "bool" | "bytes" | "double" | "int" | "list" | "map" | "null_type" | "string" | "uint" => Type::Dyn,
            name if name.starts_with('@') => Type::Dyn,
            name => {
                let near = VARIABLES.iter().copied().max_by(|one, other| {
                    let closeness = |known: &str| strsim::normalized_damerau_levenshtein(name, known);
                    closeness(one).total_cmp(&closeness(other))
                });
                let near = near.filter(|near| strsim::normalized_damerau_levenshtein(name, near) >= 0.5);
                let help = match near {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("there are {}", VARIABLES.join(", ")),
                };
                self.tell(id, format!("nothing is named `{name}`: {help}"));
                Type::Dyn
            }
        }
    }

    fn select(&mut self, id: u64, select: &'p SelectExpr) -> Type {
        let of = self.infer(&select.operand);
        if !matches!(of, Type::Map | Type::Dyn) {
            self.tell(id, format!("{} has no field `{}`", of.words(), select.field));
        }
        if select.test { Type::Bool } else { Type::Dyn }
    }

    fn call(&mut self, id: u64, call: &'p CallExpr) -> Type {
        let target = call.target.as_deref().map(|target| self.infer(target));
        let arguments: Vec<Type> = call.args.iter().map(|argument| self.infer(argument)).collect();
        match (call.func_name.as_str(), arguments.as_slice()) {
            (operators::LOGICAL_AND | operators::LOGICAL_OR | operators::LOGICAL_NOT, arguments) => {
                for (argument, is) in call.args.iter().zip(arguments) {
                    if !matches!(is, Type::Bool | Type::Dyn) {
                        self.tell(argument.id, format!("this is {}, and has to be true or false", is.words()));
                    }
                }
                Type::Bool
            }
            (operators::EQUALS | operators::NOT_EQUALS, [one, other]) => {
                if !one.compares(*other) {
                    self.tell(id, format!("{} is never {}", one.words(), other.words()));
                }
                Type::Bool
            }
            (
                operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS,
                [one, other],
            ) => {
                let ordered = |is: Type| !matches!(is, Type::List | Type::Map | Type::Null);
                if !one.compares(*other) || !ordered(*one) || !ordered(*other) {
                    self.tell(id, format!("{} cannot be compared with {}", one.words(), other.words()));
                }
                Type::Bool
            }
            (operators::ADD, [one, other]) => {
                let adds =
                    |is: Type| is.is_number() || matches!(is, Type::String | Type::Bytes | Type::List | Type::Dyn);
                if !adds(*one) || !adds(*other) || !one.compares(*other) {
                    self.tell(id, format!("{} and {} cannot be added", one.words(), other.words()));
                }
                if *one == Type::Dyn { *other } else { *one }
            }
            (
                operators::SUBSTRACT | operators::MULTIPLY | operators::DIVIDE | operators::MODULO | operators::NEGATE,
                all,
            ) => {
                for (argument, is) in call.args.iter().zip(all) {
                    if !is.is_number() && *is != Type::Dyn {
                        self.tell(argument.id, format!("this is {}, and has to be a number", is.words()));
                    }
                }
                all.iter().copied().find(|is| is.is_number()).unwrap_or(Type::Dyn)
            }
            (operators::INDEX, [of, _]) => {
                if !matches!(of, Type::List | Type::Map | Type::Dyn) {
                    self.tell(id, format!("{} has no elements", of.words()));
                }
                Type::Dyn
            }
            (operators::IN, [_, of]) => {
                if !matches!(of, Type::List | Type::Map | Type::Dyn) {
                    self.tell(id, format!("{} has no elements", of.words()));
                }
                Type::Bool
            }
            (operators::CONDITIONAL, [condition, one, other]) => {
                if !matches!(condition, Type::Bool | Type::Dyn) {
                    self.tell(id, format!("this is {}, and has to be true or false", condition.words()));
                }
                if one == other { *one } else { Type::Dyn }
            }
            (name, _) => {
                if let ("matches", Some(pattern)) = (name, call.args.last()) {
                    self.pattern(pattern);
                }
                self.function(id, name, target)
            }
        }
    }

    /// A regular expression that is written out can be judged before there is a record.
    fn pattern(&mut self, pattern: &'p IdedExpr) {
        let Expr::Literal(LiteralValue::String(text)) = &pattern.expr else { return };
        if let Err(error) = regex::Regex::new(text.inner()) {
            let error = error.to_string();
            let why = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
            self.tell(pattern.id, format!("this is not a regular expression: {why}"));
        }
    }

    fn function(&mut self, id: u64, name: &str, target: Option<Type>) -> Type {
        let Some((_, gives)) = FUNCTIONS.iter().find(|(known, _)| *known == name) else {
            self.tell(id, format!("there is no function `{name}`"));
            return Type::Dyn;
        };
        let of_text = matches!(name, "contains" | "startsWith" | "endsWith" | "matches");
        if let Some(is) = target.filter(|is| of_text && !matches!(is, Type::String | Type::Bytes | Type::Dyn)) {
            self.tell(id, format!("`{name}` is asked of text, and this is {}", is.words()));
        }
        *gives
    }

    /// A macro: `all`, `exists`, `map`, … One in another would take time that grows with the square of a record.
    fn comprehension(&mut self, id: u64, of: &'p ComprehensionExpr) -> Type {
        let range = self.infer(&of.iter_range);
        if !matches!(range, Type::List | Type::Map | Type::Dyn) {
            self.tell(id, format!("{} has no elements", range.words()));
        }
        if self.nested {
            self.tell(id, "one `all`, `exists`, `map` or `filter` inside another is not supported".to_owned());
        }
        let outer = std::mem::replace(&mut self.nested, true);
        let depth = self.scope.len();
        let gives = self.infer(&of.accu_init);
        self.scope.push((&of.accu_var, gives));
        self.scope.push((&of.iter_var, Type::Dyn));
        self.scope.extend(of.iter_var2.as_deref().map(|name| (name, Type::Dyn)));
        self.infer(&of.loop_cond);
        self.infer(&of.loop_step);
        self.nested = outer;
        let result = self.infer(&of.result);
        self.scope.truncate(depth);
        result
    }
}

/// How many parts stand within each other at most.
fn depth(expression: &IdedExpr) -> usize {
    let of_entry = |entry: &EntryExpr| match entry {
        EntryExpr::MapEntry(entry) => depth(&entry.key).max(depth(&entry.value)),
        EntryExpr::StructField(field) => depth(&field.value),
    };
    let within = match &expression.expr {
        Expr::Literal(_) | Expr::Ident(_) | Expr::Unspecified => None,
        Expr::Select(select) => Some(depth(&select.operand)),
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).map(depth).max(),
        Expr::List(list) => list.elements.iter().map(depth).max(),
        Expr::Map(map) => map.entries.iter().map(|entry| of_entry(&entry.expr)).max(),
        Expr::Struct(of) => of.entries.iter().map(|entry| of_entry(&entry.expr)).max(),
        Expr::Comprehension(of) => {
            [&of.iter_range, &of.accu_init, &of.loop_cond, &of.loop_step, &of.result].map(depth).into_iter().max()
        }
    };
    1 + within.unwrap_or(0)
}

/// How deep brackets stand within each other; those in text count, too.
fn nesting(text: &str) -> usize {
    let depths = text.bytes().scan(0_usize, |depth, byte| {
        match byte {
            b'(' | b'[' | b'{' => *depth += 1,
            b')' | b']' | b'}' => *depth = depth.saturating_sub(1),
            _ => {}
        }
        Some(*depth)
    });
    depths.max().unwrap_or(0)
}

/// The byte of a line and column, both from 1.
fn offset(text: &str, (line, column): (isize, isize)) -> usize {
    let before: usize = text.split_inclusive('\n').take(usize::try_from(line - 1).unwrap_or(0)).map(str::len).sum();
    let line = text[before..].lines().next().unwrap_or_default();
    let column = usize::try_from(column - 1).unwrap_or(0);
    before + line.char_indices().nth(column).map_or(line.len(), |(at, _)| at)
}

/// Behind the character at a byte.
fn next(text: &str, at: usize) -> usize {
    text.get(at..).and_then(|rest| rest.chars().next()).map_or(at, |c| at + c.len_utf8())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Offset, SourceBatch, TopicName, TopicPartition};

    struct One {
        at: TopicPartition,
        key: Option<Vec<u8>>,
        value: Option<Vec<u8>>,
        headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    }

    impl SourceBatch for One {
        fn topic_partition(&self) -> &TopicPartition {
            &self.at
        }
        fn len(&self) -> usize {
            1
        }
        fn offset(&self, _: usize) -> Offset {
            7
        }
        fn timestamp(&self, _: usize) -> i64 {
            1_000
        }
        fn key(&self, _: usize) -> Option<&[u8]> {
            self.key.as_deref()
        }
        fn value(&self, _: usize) -> Option<&[u8]> {
            self.value.as_deref()
        }
        fn header_count(&self, _: usize) -> usize {
            self.headers.len()
        }
        fn header(&self, _: usize, nth: usize) -> (&[u8], Option<&[u8]>) {
            (&self.headers[nth].0, self.headers[nth].1.as_deref())
        }
    }

    fn holds_for(text: &str, key: Option<&[u8]>, value: Option<&[u8]>) -> Result<bool, String> {
        let headers =
            vec![(b"n".to_vec(), Some(b"1".to_vec())), (b"n".to_vec(), Some(b"2".to_vec())), (b"z".to_vec(), None)];
        let at = TopicPartition { topic: TopicName::new("orders.eu").unwrap(), partition: 3 };
        let one = One { at, key: key.map(<[u8]>::to_vec), value: value.map(<[u8]>::to_vec), headers };
        let items = Items::of(Arc::new(one), 0..1);
        let condition = Condition::compile(text).unwrap_or_else(|errors| panic!("{text}: {errors:?}"));
        condition.holds(&items, &items.list[0], &mut Values::default())
    }

    fn holds(text: &str) -> Result<bool, String> {
        let value =
            br#"{"status":"paid","total":7,"rate":1.5,"lines":[{"sku":"a"},{"sku":"b"}],"none":null,"user-id":"u"}"#;
        holds_for(text, Some(b"user:1"), Some(value))
    }

    #[test]
    fn a_condition_sees_the_whole_record() {
        for text in [
            "value.status == 'paid' && value.total > 5",
            "value.total >= 7.0 && value.rate < 2",
            "key.startsWith('user:')",
            "headers.n == '2' && headers['z'] == null && !('x' in headers)",
            "topic == 'orders.eu' && partition == 3 && offset == 7 && timestamp == 1000",
            "topic.matches('^orders[.].*$')",
            "has(value.status) && !has(value.missing)",
            "value.none == null",
            "value.lines.exists(line, line.sku == 'b')",
            "value['user-id'] in ['u', 'v']",
            "size(value.lines) == 2",
            "value.?missing.orValue('x') == 'x'",
            "value.total == 7 ? true : false",
        ] {
            assert_eq!(holds(text), Ok(true), "{text}");
        }
        assert_eq!(holds("value.status == 'open'"), Ok(false));
        assert_eq!(holds_for("key == null && value == null", None, None), Ok(true));
    }

    #[test]
    fn what_is_neither_true_nor_false_is_told_without_values() {
        for (text, why) in [
            ("value.missing == 'x'", "no such key: missing"),
            ("value.status > 5", "no matching overload"),
            ("value.status", "it is string"),
        ] {
            let error = holds(text).expect_err(text);
            assert!(error.contains(why) && !error.contains("paid"), "{text}: {error}");
        }
        assert_eq!(holds_for("value.a == 1", None, Some(b"not JSON")), Err("the value is not JSON".to_owned()));
        assert!(holds_for("value.a == 1", None, None).is_err(), "a tombstone has no fields");
        // What is not asked for is not parsed.
        assert_eq!(holds_for("key == null", None, Some(b"not JSON")), Ok(true));
    }

    #[test]
    fn a_text_that_is_no_condition_is_told_with_its_place() {
        for (text, place, why) in [
            ("valu.status == 'x'", "valu", "did you mean `value`?"),
            ("zzz == 'x'", "zzz", "there are key, value"),
            ("value.a == ", "", "Syntax error"),
            ("topic", "topic", "has to be true or false"),
            ("partition + 1", "", "has to be true or false"),
            ("topic == 3", "", "text is never a whole number"),
            ("partition < 'a'", "", "cannot be compared"),
            ("partition && true", "partition", "has to be true or false"),
            ("value.a.lowerCase() == 'x'", "", "no function `lowerCase`"),
            ("topic.length == 3", "", "text has no field `length`"),
            ("value.a.exists(x, value.b.exists(y, x == y))", "", "inside another"),
            ("value.a.all(x, y == x)", "y", "nothing is named `y`"),
            ("partition.contains('a')", "", "asked of text"),
            ("topic.matches('^(')", "'^('", "not a regular expression: unclosed group"),
        ] {
            let errors = Condition::compile(text).expect_err(text);
            let error = &errors[0];
            assert!(error.message.contains(why), "{text}: {errors:?}");
            assert!(text[error.range.clone()].starts_with(place), "{text}: {errors:?}");
        }
        assert!(Condition::compile(&"(".repeat(3_000)).is_err());
        assert!(Condition::compile("").is_err());
    }

    #[test]
    fn a_value_is_parsed_once_and_again_when_it_has_changed() {
        let at = TopicPartition { topic: TopicName::new("t").unwrap(), partition: 0 };
        let one = One { at, key: None, value: Some(br#"{"a":1}"#.to_vec()), headers: vec![] };
        let mut items = Items::of(Arc::new(one), 0..1);
        let condition = Condition::compile("value.a == 1").unwrap();
        let mut values = Values::default();
        assert_eq!(condition.holds(&items, &items.list[0], &mut values), Ok(true));
        assert_eq!(values.0.len(), 1);
        items.list[0].value = Field::Null;
        assert!(condition.holds(&items, &items.list[0], &mut values).is_err());
    }

    #[test]
    fn what_would_take_a_stack_to_its_end_is_refused_and_what_people_write_is_not() {
        for text in [
            format!("value{} == 1", ".a".repeat(2_000)),
            format!("{}1 == 1", "1+".repeat(2_000)),
            format!("{}true", "true?true:".repeat(400)),
        ] {
            assert!(Condition::compile(&text).is_err(), "{}…", &text[..20]);
        }
        let many = format!("topic in [{}'z']", "'a', ".repeat(500));
        let either = (0..100).map(|n| format!("value.region == 'r{n}'")).collect::<Vec<_>>().join(" || ");
        for text in [&format!("value{} == 1", ".a".repeat(40)), &many, &either] {
            Condition::compile(text).unwrap_or_else(|errors| panic!("{text}: {errors:?}"));
        }
    }
}
