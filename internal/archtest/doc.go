// Package archtest holds the shape of this repository as tests. It has no code
// of its own: `go test ./internal/archtest` reads every Go file of the module,
// whatever its build tags, and fails on
//
//   - an import that goes upward or sideways in the table of ranks, a package
//     without a rank, and a production file that imports a test helper
//   - a third-party module that is not on the list, or not allowed there
//   - a file of more than 500 lines or a production function of more than 70
//   - time.Sleep in a test
//   - a clock, the operating system, the network, randomness or a goroutine in
//     the pure core
//   - markers of unfinished work in production code
//
// Every message names the replacement. Each check is a function from a file
// tree to a list of complaints, and is itself tested on a small tree that breaks
// the rule, so that a check which has stopped seeing anything is noticed.
//
// # Test files
//
// A test file follows the same ranks as the package that it stands in, with one
// liberty: it may import a test helper (a row with helper set) of its own rank
// or a lower one. Helpers hold fakes and conformance suites; a helper may import
// the package that it belongs to, its parent directory, although they share a
// rank. Nothing in production may import a helper.
package archtest
