package blockdev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev/devtest"
)

// A bench is what a script works on: one simulated disk and the device on it.
type bench struct {
	t     *testing.T
	disk  *devtest.Disk
	block int // logical block size that the disk claims
	dev   *Device
	saved map[string][]byte
}

// TestScripts runs the scripts in testdata: one story of a device each.
func TestScripts(t *testing.T) {
	for _, name := range []string{"open", "superblock", "table", "clean", "assign", "format"} {
		t.Run(name, func(t *testing.T) {
			b := &bench{t: t, saved: map[string][]byte{}}
			datadriven.RunTest(t, "testdata/"+name, func(t *testing.T, c *datadriven.TestData) string {
				b.t = t
				return b.run(c)
			})
		})
	}
}

var kinds = []struct {
	err  error
	name string
}{
	{redoubt.ErrCorrupt, "corrupt"}, {redoubt.ErrForeign, "foreign"}, {redoubt.ErrInvalid, "invalid"},
	{redoubt.ErrFull, "full"}, {redoubt.ErrExists, "exists"}, {redoubt.ErrDeviceFailed, "device failed"}, {redoubt.ErrClosed, "closed"},
}

// verdictOf prints what came of a command: its output, or the error and the
// kinds that it matches.
func verdictOf(out string, err error) string {
	if err == nil {
		return out
	}
	var is []string
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			is = append(is, k.name)
		}
	}
	return fmt.Sprintf("error: %v\nis: %s\n", err, strings.Join(is, ", "))
}

func (b *bench) run(c *datadriven.TestData) string {
	switch c.Cmd {
	case "new", "format", "truncate", "block-size":
		return b.make(c)
	case "open", "close", "assign", "release", "mark-clean", "clear-clean", "table", "check":
		return b.use(c)
	}
	return b.harm(c)
}

func intArg(t *testing.T, c *datadriven.TestData, key string, def int) int {
	if c.HasArg(key) {
		c.ScanArgs(t, key, &def)
	}
	return def
}

// make runs the commands that make a disk what it is.
func (b *bench) make(c *datadriven.TestData) string {
	switch c.Cmd {
	case "new":
		b.disk = devtest.New(int64(intArg(b.t, c, "size", smallSize)))
		b.block = b.disk.BlockSize()
	case "block-size":
		b.block = intArg(b.t, c, "bytes", 512)
	case "truncate":
		b.disk = devtest.FromBytes(b.disk.Bytes()[:intArg(b.t, c, "bytes", 0)])
	case "format":
		o := smallOptions()
		o.Force = c.HasArg("force")
		o.ExtentSize = int64(intArg(b.t, c, "extent-size", smallExtent))
		o.Position, o.Count = intArg(b.t, c, "position", 0), intArg(b.t, c, "count", 0)
		if c.HasArg("device") {
			o.device = redoubt.DeviceID(id(byte(intArg(b.t, c, "device", 0))))
		}
		if c.HasArg("nobody") {
			o.Node = redoubt.NodeID{}
		}
		sb, err := FormatEngine(b.disk, b.disk.Size(), b.block, o)
		return verdictOf(fmt.Sprintf("%d extents of %d from %d\n", sb.ExtentCount, sb.ExtentSize, sb.DataOff), err)
	}
	return ""
}

// use runs the commands that a node would.
func (b *bench) use(c *datadriven.TestData) string {
	switch c.Cmd {
	case "open":
		var err error
		b.dev, err = OpenEngine(b.disk, b.disk.Size(), b.block, Options{ReadOnly: c.HasArg("read-only"), ReserveExtents: intArg(b.t, c, "reserve", 0)})
		if err != nil {
			return verdictOf("", err)
		}
		s := b.dev.Super()
		out := fmt.Sprintf("generation %d, clean %d, %d free, %d with the reserve\n", s.Generation, s.Clean, b.dev.FreeExtents(Normal), b.dev.FreeExtents(Reserve))
		return out + damages(b.dev.Found())
	case "close":
		return verdictOf("", b.dev.Close())
	case "assign":
		role, class := RoleLog, Normal
		if c.HasArg("pages") {
			role = RolePages
		}
		if c.HasArg("reserve") {
			class = Reserve
		}
		e, err := b.dev.Assign(role, uint32(intArg(b.t, c, "owner", 0)), uint64(intArg(b.t, c, "seq", 0)), class)
		return verdictOf(fmt.Sprintf("extent %d, generation %d\n", e.Index, e.Gen), err)
	case "release":
		return verdictOf("", b.dev.Release(uint32(intArg(b.t, c, "extent", 0))))
	case "mark-clean":
		return verdictOf("", b.dev.MarkClean(uint64(intArg(b.t, c, "pos", 0))))
	case "clear-clean":
		return verdictOf("", b.dev.ClearClean())
	case "table":
		return table(b.dev)
	}
	found, err := b.dev.CheckTable()
	if len(found) == 0 {
		return verdictOf("whole\n", err)
	}
	return verdictOf(damages(found), err)
}

func damages(found []Damage) string {
	var out strings.Builder
	for _, d := range found {
		fmt.Fprintf(&out, "damage: %v\n", d)
	}
	return out.String()
}

// harm runs the commands that damage the medium. Each fails the test if it
// changes nothing.
func (b *bench) harm(c *datadriven.TestData) string {
	off := int64(intArg(b.t, c, "off", 0))
	n := intArg(b.t, c, "len", 0)
	switch c.Cmd {
	case "flip":
		b.disk.Flip(off, uint(intArg(b.t, c, "bit", 0)))
	case "zero":
		b.disk.Overwrite(b.t, off, make([]byte, n))
	case "scribble":
		b.disk.Overwrite(b.t, off, []byte(strings.Repeat("scribble", n/8)))
	case "peek":
		buf := make([]byte, n)
		b.disk.Peek(buf, off)
		return fmt.Sprintf("%x\n", buf)
	case "save": // what stands there, to be put back later
		buf := make([]byte, n)
		b.disk.Peek(buf, off)
		b.saved[fmt.Sprint(off)] = buf
	case "put-back":
		b.disk.Overwrite(b.t, off, b.saved[fmt.Sprint(intArg(b.t, c, "saved", int(off)))])
	case "patch": // a field of a superblock copy, with a right sum
		b.patch(off, c)
	case "seal": // a byte of a table slot, with right sums
		b.seal(off, c)
	case "read-error":
		b.disk.Arm(devtest.Fault{Kind: devtest.ReadError, Off: off, Len: int64(n), Times: -1})
	case "lose-next-write":
		b.disk.Arm(devtest.Fault{Kind: devtest.LostWrite})
	case "misdirect-next-write":
		b.disk.Arm(devtest.Fault{Kind: devtest.MisdirectedWrite, By: int64(intArg(b.t, c, "by", 0))})
	case "fail-next-write":
		b.disk.Arm(devtest.Fault{Kind: devtest.WriteError})
	default:
		b.t.Fatalf("unknown command %q", c.Cmd)
	}
	return ""
}

func (b *bench) patch(off int64, c *datadriven.TestData) {
	buf := make([]byte, superSize)
	b.disk.Peek(buf, off)
	buf[intArg(b.t, c, "at", 0)] = byte(intArg(b.t, c, "byte", 0))
	binary.LittleEndian.PutUint32(buf[8:], crc32.Checksum(buf[12:], castagnoli))
	b.disk.Overwrite(b.t, off, buf)
}

// seal changes a byte of the slot at off and puts all its sums right.
func (b *bench) seal(off int64, c *datadriven.TestData) {
	buf := make([]byte, slotSize)
	b.disk.Peek(buf, off)
	buf[intArg(b.t, c, "at", 0)] = byte(intArg(b.t, c, "byte", 0))
	whole := entriesSum(buf)
	for i := range slotSectors {
		s := buf[i*sectorSize : (i+1)*sectorSize]
		binary.LittleEndian.PutUint32(s[28:], whole)
		binary.LittleEndian.PutUint32(s, crc32.Update(tableSeed(smallOptions().device), castagnoli, s[4:]))
	}
	b.disk.Overwrite(b.t, off, buf)
}
