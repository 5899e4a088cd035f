package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"golang.org/x/sys/unix"
)

const deviceHelp = `Put a load on files or block devices through the I/O engine and nothing else, to
be set against fio on the same file. append writes in sequence, durably, over the
whole device, from its start again at its end: WHAT IS THERE IS LOST. read reads
at random.

  redoubt bench device -devices /tmp/f -op read -block-size 16384 -depth 32 -json
  redoubt bench device -devices /tmp/f -op append -block-size 4096 -depth 16 -durability flush

A device that carries a superblock of Redoubt is refused for append without -force.
A file should be written in full first, or the file system's journal is measured.

JSON: ops_per_s, bytes_per_s, p50_us, p99_us, p999_us, cpu_us_per_op, errors.`

// DeviceCmd is "redoubt bench device".
func DeviceCmd(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := newFlags("bench device", deviceHelp, stderr)
	var o DeviceOptions
	devices := fs.String("devices", "", "files or block devices, comma-separated")
	fs.StringVar(&o.Op, "op", OpAppend, "append or read")
	fs.IntVar(&o.BlockSize, "block-size", 0, "bytes of one operation; default 4096 for append, 16384 for read")
	fs.IntVar(&o.Depth, "depth", 32, "operations under way on each device")
	fs.DurationVar(&o.Duration, "duration", 5*time.Second, "how long")
	fs.StringVar(&o.Engine, "io-engine", "auto", "auto, uring or sync")
	fs.StringVar(&o.Durability, "durability", FUA, "fua: DSYNC on each write; flush: one flush for a group; plp: the write alone")
	force := fs.Bool("force", false, "append to a device that carries a superblock")
	asJSON := fs.Bool("json", false, "print the result as one JSON object")
	if err := parse(fs, args); err != nil {
		return err
	}
	paths := pathList(*devices)
	if len(paths) == 0 {
		return errors.New("bench: device: name the devices with -devices PATH,PATH and so on")
	}
	if o.Op != OpRead {
		if err := guard(paths, *force); err != nil {
			return err
		}
		fmt.Fprintf(stderr, "bench: appending overwrites what is on %s\n", strings.Join(paths, ", "))
	}
	fds, err := openAll(paths, o.Op == OpRead)
	if err != nil {
		return err
	}
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	res, err := RunDevice(ctx, fds, o)
	if *asJSON {
		return errors.Join(err, printJSON(stdout, res))
	}
	if res.Ops > 0 {
		fmt.Fprintf(stdout, "ops        %.0f/s, %s/s, %d in %.1f s, %d errors\n", res.OpsPerS, sizeText(res.BytesPerS), res.Ops, res.Elapsed.Seconds(), res.Errors)
		fmt.Fprintf(stdout, "latency    p50 %.0f us, p99 %.0f us, p99.9 %.0f us\n", res.P50us, res.P99us, res.P999us)
		fmt.Fprintf(stdout, "CPU        %.2f us an op\n", res.CPUusPerOp)
	}
	return err
}

// guard refuses devices that are in use as such.
func guard(paths []string, force bool) error {
	if force {
		return nil
	}
	for _, path := range paths {
		d, err := blockdev.Open(path, blockdev.Options{ReadOnly: true, LockWait: -1})
		if err == nil {
			sb := d.Super()
			d.Close()
			return fmt.Errorf("bench: device: %s is device %v of node %v; appending would destroy it (-force): %w", path, sb.Device, sb.Node, redoubt.ErrExists)
		}
		// What can't be opened as a device is none, unless it is a broken one or
		// one that a node holds.
		if errors.Is(err, redoubt.ErrCorrupt) || errors.Is(err, redoubt.ErrBusy) {
			return fmt.Errorf("bench: device: %s looks like a device of Redoubt (-force): %w", path, err)
		}
	}
	return nil
}

// openAll opens files for direct I/O.
func openAll(paths []string, readOnly bool) ([]int, error) {
	mode := unix.O_RDWR
	if readOnly {
		mode = unix.O_RDONLY
	}
	var fds []int
	for _, path := range paths {
		fd, err := unix.Open(path, mode|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		if err != nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
			return nil, fmt.Errorf("bench: device: opening %s for direct I/O: %w", path, err)
		}
		fds = append(fds, fd)
	}
	return fds, nil
}
