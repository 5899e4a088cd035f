package devtest_test

import (
	"testing"

	"github.com/redoubt-storage/redoubt/blockdev/devtest"
	"github.com/redoubt-storage/redoubt/ioring"
	"github.com/redoubt-storage/redoubt/ioring/enginetest"
	"golang.org/x/sys/unix"
)

// The fake passes what the real engines pass.
func TestConformance(t *testing.T) {
	open := func(t *testing.T, fd int) *devtest.Disk {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			t.Fatal(err)
		}
		return devtest.New(st.Size)
	}
	t.Run("Inline", func(t *testing.T) {
		enginetest.Run(t, func(t *testing.T, fd int, _ [][]byte) ioring.Engine { return open(t, fd) })
	})
	t.Run("Shuffled", func(t *testing.T) {
		enginetest.Run(t, func(t *testing.T, fd int, _ [][]byte) ioring.Engine {
			d := open(t, fd)
			t.Cleanup(d.Shuffle(1))
			return d
		})
	})
}
