package bench

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// newFlags returns a flag set whose help begins with what the command is for.
func newFlags(name, text string, out io.Writer) *flag.FlagSet {
	fs := flag.NewFlagSet("redoubt "+name, flag.ContinueOnError)
	fs.SetOutput(out)
	fs.Usage = func() {
		fmt.Fprintf(out, "%s\n\nFlags:\n", strings.TrimSpace(text))
		fs.PrintDefaults()
	}
	return fs
}

// A byteSize is a number of bytes on the command line: 1GiB, 512MiB, 4096.
type byteSize int64

// sizeUnits are tried in this order, the largest first.
var sizeUnits = [...]struct {
	name string
	n    int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

func (s *byteSize) String() string {
	for _, u := range sizeUnits {
		if v := int64(*s); v != 0 && v%u.n == 0 {
			return strconv.FormatInt(v/u.n, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(*s), 10)
}

// Set implements flag.Value.
func (s *byteSize) Set(v string) error {
	mult := int64(1)
	for _, u := range sizeUnits {
		if n, ok := strings.CutSuffix(v, u.name); ok {
			v, mult = n, u.n
			break
		}
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/mult {
		return fmt.Errorf("want bytes, or a number with KiB, MiB, GiB or TiB")
	}
	*s = byteSize(n * mult)
	return nil
}

// sizeVar makes p, which has its default, a flag.
func sizeVar(fs *flag.FlagSet, p *int64, name, help string) { fs.Var((*byteSize)(p), name, help) }

// parse parses args, which must be flags alone.
func parse(fs *flag.FlagSet, args []string) error {
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("bench: %q is no flag; see %s --help", fs.Arg(0), fs.Name())
	}
	return nil
}

// pathList splits a comma-separated list and drops empty items.
func pathList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' })
}

// printJSON writes v as one line.
func printJSON(w io.Writer, v any) error {
	if err := json.NewEncoder(w).Encode(v); err != nil {
		return fmt.Errorf("bench: writing the result: %w", err)
	}
	return nil
}

// setZero gives *p the value v if it has none.
func setZero[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}
