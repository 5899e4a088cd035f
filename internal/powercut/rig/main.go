// Command rig runs the power-cut machine: a campaign of cuts, the self-test with
// planted bugs, or the replay of a failure. scripts/powercut.sh builds what it needs
// and calls it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/redoubt-storage/redoubt/internal/powercut"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// options are the command's flags.
type options struct {
	life     powercut.LifeOptions
	initrd   string
	files    string
	seed     uint64
	cuts     int
	keep     string
	selftest bool
	replay   string
	args     string
}

func parse(args []string) (options, error) {
	var o options
	m := &o.life.Machine
	fs := flag.NewFlagSet("rig", flag.ContinueOnError)
	fs.StringVar(&m.Kernel, "kernel", "", "the guest's kernel `image`")
	fs.StringVar(&o.initrd, "initrd", "", "where to write the guest's initial file system")
	fs.StringVar(&o.files, "files", "", "its executables as `NAME=PATH,...`; init is one of them")
	fs.StringVar(&m.QEMU, "qemu", "", "the emulator (default qemu-system-x86_64)")
	fs.StringVar(&m.Accel, "accel", "", "what runs the guest's instructions, say kvm (default the emulator)")
	fs.IntVar(&m.MemoryMiB, "memory", 512, "the guest's memory in MiB")
	fs.IntVar(&m.LogicalBlock, "block", 512, "the drives' logical block size, 512 or 4096")
	fs.BoolVar(&m.WriteThrough, "write-through", false, "drives without a cache: every write is forced")
	fs.StringVar(&o.life.Workload, "workload", "node", "what runs in the guest")
	fs.StringVar(&o.args, "args", "", "for the workload, separated by spaces")
	fs.IntVar(&o.life.Disks, "disks", 2, "drives")
	fs.Int64Var(&o.life.DiskSize, "size", 40<<20, "bytes of each drive")
	fs.BoolVar(&o.life.Lies, "lies", false, "drives that answer flushes and do nothing")
	fs.IntVar(&o.life.MaxCuts, "max-cuts", 3, "most cuts in one life")
	fs.IntVar(&o.life.MaxWrites, "max-writes", 400, "last write at which the power may go")
	fs.Uint64Var(&o.seed, "seed", 0, "the first life's seed (default: a random one, printed)")
	fs.IntVar(&o.cuts, "cuts", 500, "how many cuts, at least")
	fs.StringVar(&o.keep, "keep", "", "the `directory` that gets what a failure leaves behind")
	fs.BoolVar(&o.selftest, "selftest", false, "catch the planted bugs instead")
	fs.StringVar(&o.replay, "replay", "", "reach the verdict of a failure's `directory` again instead")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	o.life.Args = strings.Fields(o.args)
	m.Initrd = o.initrd
	m.FUA = m.WriteThrough // the emulator forces writes only for such drives
	if m.Kernel == "" || o.initrd == "" || fs.NArg() > 0 {
		return o, errors.New("rig: -kernel and -initrd are needed, and nothing but flags; scripts/powercut.sh knows how")
	}
	if o.seed == 0 {
		o.seed = rand.Uint64N(1e9) + 1
	}
	return o, nil
}

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	var files []powercut.InitrdFile
	for pair := range strings.SplitSeq(o.files, ",") {
		name, path, ok := strings.Cut(pair, "=")
		if !ok {
			return fmt.Errorf("rig: -files %q: want pairs NAME=PATH with commas between", o.files)
		}
		files = append(files, powercut.InitrdFile{Name: name, Path: path})
	}
	if err := powercut.WriteInitrd(o.initrd, files); err != nil {
		return err
	}
	switch {
	case o.selftest:
		return selftest(ctx, o)
	case o.replay != "":
		return replay(ctx, o)
	}
	c := &powercut.Campaign{Life: o.life, Seed: o.seed, Cuts: o.cuts, Keep: o.keep, Out: os.Stdout}
	if o.life.Workload == "node" && !o.life.Machine.WriteThrough {
		c.Must = []string{"torn", "coalesced", "trimmed", "truncated", "older"}
	}
	return c.Run(ctx)
}

// selftest has every planted bug caught. A sound program loses nothing in so few
// lives; an unsound one is caught within the first few of them.
func selftest(ctx context.Context, o options) error {
	const lives = 20
	for _, p := range powercut.Plants(o.life) {
		if err := p.Catch(ctx, o.seed, lives, os.Stdout); err != nil {
			return err
		}
	}
	return nil
}

func replay(ctx context.Context, o options) error {
	f, err := powercut.LoadFailure(o.replay)
	if err != nil {
		return err
	}
	if err := f.Replay(o.life).Verify(ctx); err != nil {
		return err
	}
	fmt.Println("nothing is lost on these images: whatever it was is mended")
	return nil
}
