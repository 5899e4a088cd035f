//go:build race

package segfile

// raceEnabled: the race detector costs a factor of ten, so exhaustive tests go
// one level less deep, and flip fewer bits.
const (
	raceEnabled = true
	flipStep    = 23
)
