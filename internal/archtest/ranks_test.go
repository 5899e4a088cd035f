package archtest

const module = "github.com/redoubt-storage/redoubt"

// A place is a package's row in the table of ranks.
type place struct {
	path   string // below the module; "" is the root
	rank   int
	helper bool // for tests: fakes and conformance suites
}

// ranks is the table. A package imports lower ranks only, never its own. Adding
// a row is a decision: say in the commit why no package that exists would do.
var ranks = []place{
	{path: "", rank: 0},
	{path: "internal/invariant", rank: 0},
	{path: "internal/archtest", rank: 0},

	{path: "slab", rank: 1},
	{path: "redo", rank: 1},
	{path: "ioring", rank: 1},
	{path: "ioring/enginetest", rank: 1, helper: true},

	{path: "wire", rank: 2},
	{path: "blockdev", rank: 2},
	{path: "blockdev/devtest", rank: 2, helper: true},

	{path: "segfile", rank: 3},

	{path: "netserver", rank: 4},
	{path: "logqueue", rank: 4},
	{path: "coalescer", rank: 4},
	{path: "peer", rank: 4},

	{path: "node", rank: 5},
	{path: "internal/powercut/guest", rank: 5},

	{path: "bench", rank: 6},
	{path: "internal/powercut", rank: 6},

	{path: "cmd/redoubt", rank: 7},
	{path: "internal/powercut/init", rank: 7},
	{path: "internal/powercut/rig", rank: 7},
}

// testMeetings lists the strangers of one rank that meet in tests, and why.
var testMeetings = []struct{ from, to, why string }{
	{"peer", "netserver", "the two ends of the wire are tested against each other; what they share is package wire"},
	{"coalescer", "logqueue", "its tests run over the real log as well as over a fake"},
}

// meets reports whether a test of one package may import the other.
func meets(from, to string) bool {
	for _, m := range testMeetings {
		if m.from == from && m.to == to {
			return true
		}
	}
	return false
}

// pureCore lists the packages whose production files are functions from events
// to effects, so that a simulation can drive them.
var pureCore = []string{"redo", "segfile"}

// impure lists what the pure core may not import, with everything below it.
var impure = []struct{ path, instead string }{
	{"time", "take moments and durations as arguments"},
	{"os", "ask the small Device interface that the caller passes"},
	{"net", "return bytes; the shell around the core sends them"},
	{"math/rand", "take a source of randomness as an argument"},
	{"crypto/rand", "take IDs and seeds as arguments"},
}

// A dependency is a third-party module that we use.
type dependency struct {
	path  string
	only  []string // the packages that may import it; nil: any outside the pure core
	tests bool     // for test files and helpers alone
	why   string
}

var dependencies = []dependency{
	{path: "github.com/pawelgaczynski/giouring", only: []string{"ioring"}, why: "io_uring; needs a linker flag, so it stays behind ioring's build tag"},
	{path: "golang.org/x/sys", why: "system calls that package syscall lacks"},
	{path: "github.com/klauspost/crc32", only: []string{"", "redo", "wire", "blockdev", "segfile", "bench"}, why: "CRC-32C where it is measured to be faster"},
	{path: "github.com/valyala/bytebufferpool", why: "pooled buffers off the hot path"},
	{path: "github.com/prometheus/client_golang", why: "metrics"},
	{path: "github.com/cockroachdb/datadriven", tests: true, why: "scripted tests"},
	{path: "pgregory.net/rapid", tests: true, why: "property tests"},
}

// Limits of a file and of a function, in lines.
const (
	maxFileLines = 500
	maxFuncLines = 70
)

// longOnes are the exceptions from the limits. A row that is no longer needed
// fails, so the list only ever shrinks by itself.
var longOnes = []exception{}

// An exception lets one file (fn empty) or function be longer than the limit,
// but not longer than lines.
type exception struct {
	file, fn string
	lines    int
	why      string
}
