// Command redoubt is a storage node in which the log is the database, and the
// tools around it. "redoubt help" lists the commands; each has --help.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/redoubt-storage/redoubt/bench"
	"github.com/redoubt-storage/redoubt/ioring"
	"golang.org/x/sys/unix"
)

// version is set by the linker.
var version = "development"

// A command is one word of the command line.
type command struct {
	name, args, help string
	run              func(ctx context.Context, args []string) error
}

func commands() []command {
	return []command{
		{"format", "-size 1GiB [-extent-size 4MiB] [-force] PATH...", "make files or block devices into the devices of a node", format},
		{"node", "-devices PATH,PATH,... [-listen ADDR] [-http ADDR] ...", "run a storage node", runNode},
		{"check", "[-json] PATH...", "check devices offline: superblocks, extent table, log, pages", check},
		{"inspect", "[-segment ID] [-log] [-page N] PATH...", "show what is on devices", inspect},
		{"bench", "device|append|read|replay|all ...", "measure, replay a trace, verify", runBench},
		{"demo", "[-dir ./data]", "the whole story in one command: format, replay, kill, recover, verify, check", runDemo},
		{"version", "", "show the version and the I/O engines inside", showVersion},
	}
}

// errFailed ends the program with status 1 after everything has been said.
var errFailed = errors.New("failed")

func main() {
	// A sleeping thread is woken up to 50 us late by default, which is half of a
	// device write. Threads inherit the setting from the first. Where the kernel
	// refuses, wake-ups are late and nothing else.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1000, 0, 0, 0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:]))
}

func run(ctx context.Context, args []string) int {
	if len(args) == 0 || args[0] == "help" || args[0] == "-h" || args[0] == "--help" {
		usage(os.Stdout)
		return 0
	}
	for _, c := range commands() {
		if c.name != args[0] {
			continue
		}
		err := c.run(ctx, args[1:])
		switch {
		case err == nil || errors.Is(err, flag.ErrHelp):
			return 0
		case errors.Is(err, errFailed):
			return 1
		}
		fmt.Fprintf(os.Stderr, "redoubt %s: %v\n", c.name, err)
		return 1
	}
	fmt.Fprintf(os.Stderr, "redoubt: there is no command %q\n\n", args[0])
	usage(os.Stderr)
	return 2
}

func usage(w io.Writer) {
	fmt.Fprintf(w, "Redoubt: a storage service in which the log is the database.\n\nUsage: redoubt COMMAND [FLAGS]\n\n")
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-8s %s\n           %s\n", c.name, c.help, strings.TrimSpace("redoubt "+c.name+" "+c.args))
	}
	fmt.Fprintf(w, "\nredoubt COMMAND --help explains the command's flags.\n")
}

// newFlags returns a flag set whose help begins with what the command is for.
func newFlags(name, text string) *flag.FlagSet {
	fs := flag.NewFlagSet("redoubt "+name, flag.ContinueOnError)
	fs.Usage = func() {
		fmt.Fprintf(fs.Output(), "%s\n\nFlags:\n", text)
		fs.PrintDefaults()
	}
	return fs
}

// A size is a number of bytes on the command line: 1GiB, 512MiB, 4096.
type size int64

func (s *size) String() string {
	for _, u := range units {
		if v := int64(*s); v != 0 && v%u.n == 0 {
			return strconv.FormatInt(v/u.n, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(*s), 10)
}

var units = []struct {
	name string
	n    int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

func (s *size) Set(v string) error {
	mult := int64(1)
	for _, u := range units {
		if n, ok := strings.CutSuffix(v, u.name); ok {
			v, mult = n, u.n
			break
		}
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/mult {
		return fmt.Errorf("want bytes, or a number with KiB, MiB, GiB or TiB")
	}
	*s = size(n * mult)
	return nil
}

// paths splits a comma-separated list and drops empty items.
func paths(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
}

func runBench(ctx context.Context, args []string) error {
	if code := bench.Main(ctx, args, os.Stdout, os.Stderr); code != 0 {
		return errFailed
	}
	return nil
}

func runDemo(ctx context.Context, args []string) error {
	fs := newFlags("demo", "Format eight loopback files, replay the redo of a real PostgreSQL run into a node,\n"+
		"kill the node half-way, recover, verify every byte, check the devices.")
	dir := fs.String("dir", "./data", "where the files go; they are made if they are not there")
	if err := fs.Parse(args); err != nil {
		return err
	}
	return bench.RunDemo(ctx, bench.DemoOptions{Dir: *dir, Out: os.Stdout, Err: os.Stderr})
}

func showVersion(context.Context, []string) error {
	fmt.Printf("redoubt %s, %s, I/O engines: %s\n", version, runtime.Version(), strings.Join(ioring.Available(), ", "))
	return nil
}
