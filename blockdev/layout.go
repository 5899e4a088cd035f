package blockdev

import (
	"fmt"
	"hash/crc32"
	"math/bits"

	"github.com/redoubt-storage/redoubt"
)

const (
	superSize  = 4096
	superBOff  = 64 << 10
	tableOff   = 128 << 10
	dataAlign  = 1 << 20
	sectorSize = 512

	// DefaultExtentSize is the size of an extent unless Format is told another.
	DefaultExtentSize = 4 << 20
	// MinExtentSize and MaxExtentSize bound it; it is a power of two.
	MinExtentSize = 256 << 10
	MaxExtentSize = 64 << 20
	// MaxExtents bounds the extents of a device, and with it the table: 273 MiB
	// on the device, 96 MiB in memory. Larger devices take larger extents.
	MaxExtents = 4 << 20
	// MinExtents is the least a device can work with: a log that rolls over
	// and a reserve.
	MinExtents = 4
	// MaxDevices bounds the devices of a node.
	MaxDevices = 64

	minBlockSize = 512
	maxBlockSize = 4096
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// superOff returns the byte offset of a superblock copy, 0 or 1. Generation g
// goes to copy g%2.
func superOff(copy uint64) int64 { return int64(copy) * superBOff }

// copyName names a superblock copy in messages.
func copyName(copy int) string { return [2]string{"A", "B"}[copy] }

// tablePages returns the pages of a table with entries for n extents.
func tablePages(n int) int { return (n + pageEntries - 1) / pageEntries }

// geometry lays a device of size bytes out. The table has room for the extents
// that would fit if there were no table: a page or two too many at most.
func geometry(size, extentSize int64) (extents int, dataOff int64, err error) {
	if extentSize < MinExtentSize || extentSize > MaxExtentSize || bits.OnesCount64(uint64(extentSize)) != 1 {
		return 0, 0, fmt.Errorf("extent size %d: want a power of two from %d to %d: %w",
			extentSize, MinExtentSize, MaxExtentSize, redoubt.ErrInvalid)
	}
	if size/extentSize > MaxExtents {
		return 0, 0, fmt.Errorf("%d bytes in extents of %d are more than %d extents; choose larger extents: %w",
			size, extentSize, MaxExtents, redoubt.ErrInvalid)
	}
	table := int64(tablePages(int(size/extentSize))) * 2 * slotSize
	dataOff = alignUp(tableOff+table, dataAlign)
	extents = int((size - dataOff) / extentSize)
	if extents < MinExtents {
		return 0, 0, fmt.Errorf("%d bytes hold fewer than %d extents of %d; at least %d are needed: %w",
			size, MinExtents, extentSize, dataOff+MinExtents*extentSize, redoubt.ErrInvalid)
	}
	return extents, dataOff, nil
}

func alignUp(n, to int64) int64 { return (n + to - 1) / to * to }

// goodBlockSize reports whether logical blocks of n bytes are supported.
func goodBlockSize(n int) bool {
	return n >= minBlockSize && n <= maxBlockSize && bits.OnesCount(uint(n)) == 1
}

// wrap adds the package's name and the device's; it is called once per error,
// on its way out of the package.
func wrap(path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("blockdev: %s: %w", path, err)
}
