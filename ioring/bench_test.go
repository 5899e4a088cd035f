package ioring_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/redoubt-storage/redoubt/ioring"
	"golang.org/x/sys/unix"
)

// BenchmarkRoundTrip is one goroutine that submits a 4 KiB read and waits for it
// through a channel: the price of the hops around the device at depth 1.
func BenchmarkRoundTrip(b *testing.B) {
	for _, name := range ioring.Available() {
		b.Run(name, func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "device")
			if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
				b.Fatal(err)
			}
			fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0) // cached: no device in it
			if err != nil {
				b.Fatal(err)
			}
			defer unix.Close(fd)
			e, _, err := ioring.Open(fd, ioring.Options{Engine: name})
			if err != nil {
				b.Fatal(err)
			}
			defer e.Close()
			done := make(chan error, 1)
			op := &ioring.Op{Kind: ioring.OpRead, Bufs: [][]byte{make([]byte, 4096)}}
			op.Done = func(_ *ioring.Op, err error) { done <- err }
			b.ReportAllocs()
			for b.Loop() {
				op.SubmitTo(e)
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
