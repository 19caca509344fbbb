//! Which classes and functions a pickle may call, and the meaning of each call.
//!
//! Nothing is ever called. The rule decides only whether a file is read at all; `docs/formats.md`
//! explains it to users under "What a pickle may say".

use super::script;
use super::tensor::Rebuild;
use super::value::Global;

/// How a pickle uses a class or function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// `callable(*arguments)`: any function would run.
    Call,
    /// `class.__new__(class, *arguments)`: only a class can stand here.
    New,
}

/// The result of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// A tensor from a storage.
    Tensor(Rebuild),
    /// The first argument of this callable, as it is.
    FirstArgument(&'static str),
    /// A subclass of tensor: `(function, class, arguments, state)`, the tensor being
    /// `function(*arguments)`.
    TensorSubclass,
    /// A tensor of a kind that is not supported.
    UnsupportedTensor(&'static str),
    /// A dictionary from pairs or from another dictionary, given as this argument if at all.
    Dict(usize),
    /// A list from a sequence.
    List,
    /// A tuple from a sequence.
    Tuple,
    /// A set from a sequence.
    Set,
    /// All arguments, as a tuple.
    Arguments,
    /// An instance of the first argument, a class.
    InstanceOfArgument,
    /// An object that stays opaque.
    Opaque,
    /// Not known to be harmless: the file is refused.
    Refused,
}

/// Says what a class or function means, by its name.
pub(crate) fn meaning(global: &Global, usage: Use) -> Meaning {
    let (module, name) = (&*global.module, &*global.name);
    if let Some(meaning) = understood(module, name) {
        return meaning;
    }
    // TorchScript's named tuples and enumerations.
    if usage == Use::Call && script::is_class(global) {
        return Meaning::Arguments;
    }
    if is_standard(module) {
        return match HARMLESS.iter().find(|(known, _)| *known == module) {
            Some((_, names)) if names.contains(&name) => Meaning::Opaque,
            _ => Meaning::Refused,
        };
    }
    if usage == Use::New || is_spelled_as_class(name) {
        return Meaning::Opaque;
    }
    match HARMLESS.iter().find(|(known, _)| *known == module) {
        Some((_, names)) if names.contains(&name) => Meaning::Opaque,
        _ => Meaning::Refused,
    }
}

/// Whether it is a class of a project by its name: no module of Python itself has it.
pub(crate) fn is_class(global: &Global) -> bool {
    !is_standard(&global.module) && is_spelled_as_class(&global.name)
}

/// Whether a module is of Python's standard library, or of names that are not meant for others.
fn is_standard(module: &str) -> bool {
    let top = module.split('.').next().unwrap_or(module);
    STANDARD_LIBRARY.binary_search(&top).is_ok()
        || (top.starts_with('_') && !matches!(top, "__main__" | "__torch__"))
}

/// Whether each part of the name is capitalized, as PEP 8 wants classes to be.
fn is_spelled_as_class(name: &str) -> bool {
    name.split('.').all(|part| {
        part.trim_start_matches('_')
            .starts_with(|first: char| first.is_uppercase())
    })
}

fn understood(module: &str, name: &str) -> Option<Meaning> {
    Some(match (module, name) {
        ("torch._utils", "_rebuild_tensor") => Meaning::Tensor(Rebuild::V1),
        ("torch._utils", "_rebuild_tensor_v2") => Meaning::Tensor(Rebuild::V2),
        ("torch._utils", "_rebuild_tensor_v3") => Meaning::Tensor(Rebuild::V3),
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
            Meaning::FirstArgument("torch._utils._rebuild_parameter")
        }
        ("torch._tensor", "_rebuild_from_type_v2") => Meaning::TensorSubclass,
        ("torch._utils", "_rebuild_sparse_tensor" | "_rebuild_sparse_csr_tensor") => {
            Meaning::UnsupportedTensor("sparse")
        }
        ("torch._utils", "_rebuild_qtensor") => Meaning::UnsupportedTensor("quantized"),
        ("torch._utils", "_rebuild_meta_tensor_no_storage") => {
            Meaning::UnsupportedTensor("meta (without data)")
        }
        ("torch._utils", "_rebuild_nested_tensor") => Meaning::UnsupportedTensor("nested"),
        ("torch._utils", "_rebuild_wrapper_subclass") => Meaning::UnsupportedTensor("wrapped"),
        (
            "torch._utils",
            "_rebuild_device_tensor_from_numpy"
            | "_rebuild_device_tensor_from_cpu_tensor"
            | "_rebuild_xla_tensor",
        ) => Meaning::UnsupportedTensor("device-specific"),
        // A string that compares as a version; training programs keep it beside the weights.
        ("torch.torch_version", "TorchVersion") => {
            Meaning::FirstArgument("torch.torch_version.TorchVersion")
        }
        // The calls that TorchScript writes around lists and dictionaries, to say the type of their elements.
        (
            "torch.jit._pickle",
            "build_intlist" | "build_doublelist" | "build_boollist" | "build_tensorlist"
            | "restore_type_tag",
        ) => Meaning::FirstArgument("torch.jit._pickle"),
        ("torch", "Size") => Meaning::Tuple,
        ("collections", "OrderedDict" | "Counter") => Meaning::Dict(0),
        // Its first argument makes values for missing keys.
        ("collections", "defaultdict") => Meaning::Dict(1),
        ("builtins" | "__builtin__", "dict") => Meaning::Dict(0),
        ("builtins" | "__builtin__", "list") | ("collections", "deque") => Meaning::List,
        ("builtins" | "__builtin__", "tuple") => Meaning::Tuple,
        ("builtins" | "__builtin__", "set" | "frozenset") => Meaning::Set,
        ("copyreg" | "copy_reg", "_reconstructor" | "__newobj__" | "__newobj_ex__") => {
            Meaning::InstanceOfArgument
        }
        _ => return None,
    })
}

/// Constructors of plain data that stay opaque: by module, the names that may be called.
#[rustfmt::skip]
const HARMLESS: &[(&str, &[&str])] = &[
    ("__builtin__", &[
        "bool", "bytearray", "complex", "float", "int", "long", "object", "slice", "str",
        "unicode", "xrange",
    ]),
    ("_codecs", &["encode"]),
    // Bytes in memory, such as TransformerEngine keeps beside weights.
    ("_io", &["BytesIO"]),
    ("argparse", &["Namespace"]),
    ("builtins", &[
        "bool", "bytearray", "bytes", "complex", "float", "int", "object", "range", "slice",
        "str",
    ]),
    ("datetime", &["date", "datetime", "time", "timedelta", "timezone"]),
    ("decimal", &["Decimal"]),
    ("fractions", &["Fraction"]),
    ("functools", &["partial"]),
    ("numpy", &["dtype", "ndarray"]),
    ("numpy._core.multiarray", &["_reconstruct", "scalar"]),
    ("numpy._core.numeric", &["_frombuffer"]),
    ("numpy.core.multiarray", &["_reconstruct", "scalar"]),
    ("numpy.core.numeric", &["_frombuffer"]),
    ("numpy.random.bit_generator", &["__pyx_unpickle_SeedSequence"]),
    ("numpy.random._pickle", &["__bit_generator_ctor", "__generator_ctor", "__randomstate_ctor"]),
    ("pathlib", &[
        "Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath",
    ]),
    ("pathlib._local", &[
        "Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath",
    ]),
    ("re", &["_compile"]),
    ("torch", &["device"]),
    ("torch.serialization", &["_get_layout"]),
    ("types", &["SimpleNamespace"]),
    ("uuid", &["UUID"]),
    ("zoneinfo", &["ZoneInfo._unpickle"]),
];

/// Top-level modules of Python's standard library (2.7 and 3.8 to 3.14) and of its installers,
/// whose callables are refused unless [`HARMLESS`] has them. Sorted.
#[rustfmt::skip]
const STANDARD_LIBRARY: &[&str] = &[
    "BaseHTTPServer", "ConfigParser", "Cookie", "HTMLParser", "IPython", "Queue", "SocketServer",
    "StringIO", "UserDict", "UserList", "__builtin__", "abc", "aifc", "antigravity", "argparse",
    "array", "ast", "asynchat", "asyncio", "asyncore", "atexit", "audioop", "base64", "bdb",
    "binascii", "bisect", "builtins", "bz2", "cPickle", "cProfile", "cStringIO", "calendar", "cgi",
    "cgitb", "chunk", "cmath", "cmd", "code", "codecs", "codeop", "collections", "colorsys",
    "commands", "compileall", "compiler", "concurrent", "configparser", "contextlib", "contextvars",
    "copy", "copy_reg", "copyreg", "crypt", "csv", "ctypes", "curses", "dataclasses", "datetime",
    "dbm", "decimal", "difflib", "dircache", "dis", "distutils", "doctest", "email", "encodings",
    "ensurepip", "enum", "errno", "exceptions", "faulthandler", "fcntl", "filecmp", "fileinput",
    "fnmatch", "fractions", "ftplib", "functools", "gc", "genericpath", "getopt", "getpass",
    "gettext", "glob", "graphlib", "grp", "gzip", "hashlib", "heapq", "hmac", "html", "htmllib",
    "http", "httplib", "idlelib", "imaplib", "imghdr", "imp", "importlib", "inspect", "io",
    "ipaddress", "ipykernel", "itertools", "json", "keyword", "lib2to3", "linecache", "locale",
    "logging", "lzma", "mailbox", "mailcap", "marshal", "math", "mimetypes", "mmap", "modulefinder",
    "msilib", "msvcrt", "multiprocessing", "netrc", "new", "nis", "nntplib", "nt", "ntpath",
    "nturl2path", "numbers", "opcode", "operator", "optparse", "os", "ossaudiodev", "pathlib",
    "pdb", "pickle", "pickletools", "pip", "pipes", "pkg_resources", "pkgutil", "platform",
    "plistlib", "popen2", "poplib", "posix", "posixpath", "pprint", "profile", "pstats", "pty",
    "pwd", "py_compile", "pyclbr", "pydoc", "pydoc_data", "pyexpat", "queue", "quopri", "random",
    "re", "readline", "reprlib", "resource", "rlcompleter", "runpy", "sched", "secrets", "select",
    "selectors", "setuptools", "sgmllib", "shelve", "shlex", "shutil", "signal", "site", "smtpd",
    "smtplib", "sndhdr", "socket", "socketserver", "spwd", "sqlite3", "sre_compile",
    "sre_constants", "sre_parse", "ssl", "stat", "statistics", "string", "stringprep", "struct",
    "subprocess", "sunau", "symtable", "sys", "sysconfig", "syslog", "tabnanny", "tarfile",
    "telnetlib", "tempfile", "termios", "textwrap", "this", "thread", "threading", "time", "timeit",
    "tkinter", "token", "tokenize", "tomllib", "trace", "traceback", "tracemalloc", "tty", "turtle",
    "turtledemo", "types", "typing", "unicodedata", "unittest", "urllib", "urllib2", "urlparse",
    "user", "uu", "uuid", "venv", "warnings", "wave", "weakref", "webbrowser", "wheel", "winreg",
    "winsound", "wsgiref", "xdrlib", "xml", "xmlrpc", "xmlrpclib", "zipapp", "zipfile", "zipimport",
    "zlib", "zoneinfo",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn of(module: &str, name: &str, usage: Use) -> Meaning {
        let global = Global {
            module: module.into(),
            name: name.into(),
        };
        meaning(&global, usage)
    }

    #[test]
    fn the_table_of_modules_is_sorted() {
        assert!(STANDARD_LIBRARY.is_sorted());
    }

    #[test]
    fn what_runs_commands_or_loads_code_is_refused() {
        for (module, name) in [
            ("posix", "system"),
            ("os", "system"),
            ("nt", "system"),
            ("builtins", "eval"),
            ("builtins", "getattr"),
            ("__builtin__", "exec"),
            ("subprocess", "Popen"),
            ("_io", "FileIO"),
            ("importlib", "import_module"),
            ("operator", "attrgetter"),
            ("torch.hub", "load"),
            ("torch.storage", "_load_from_bytes"),
            ("numpy.testing._private.utils", "runstring"),
            ("pip", "main"),
            ("project.tools", "os.system"),
            ("project", "subprocess.Popen"),
        ] {
            assert_eq!(
                of(module, name, Use::Call),
                Meaning::Refused,
                "{module}.{name}"
            );
        }
        assert_eq!(of("subprocess", "Popen", Use::New), Meaning::Refused);
    }

    #[test]
    fn classes_of_projects_and_plain_data_stay_opaque() {
        for (module, name) in [
            ("transformers.trainer_utils", "IntervalStrategy"),
            ("__main__", "Config"),
            ("project", "Outer.Inner"),
            ("project", "_Private"),
            ("datetime", "datetime"),
            ("pathlib", "PosixPath"),
            ("torch", "device"),
            ("numpy", "dtype"),
        ] {
            assert_eq!(
                of(module, name, Use::Call),
                Meaning::Opaque,
                "{module}.{name}"
            );
        }
        assert_eq!(of("project", "lowercase", Use::New), Meaning::Opaque);
    }
}
