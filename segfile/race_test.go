//go:build race

package segfile

// raceEnabled: the race detector costs a factor of ten, so exhaustive tests go
// one level less deep.
const raceEnabled = true
