package bench

import (
	"context"
	"io"
	"time"
)

const allHelp = `Measure everything against its limit: the I/O engine and the node against fio on
the same disk, waiting writers against other logs in process. The contestants of
a measure take turns, -count rounds of -duration each; the figure is the median of
the rounds' ratios. It takes about five minutes, the CPUs for itself, and room for
two files. Prints a table and writes results.json and results.html.

  redoubt bench all -out bench/results
  redoubt bench all -only T4,T7 -count 3
  redoubt bench all -long

It needs fio. The other logs are in bench/peers, a module of its own that is built
with the go command if both are there.`

// AllCmd is "redoubt bench all".
func AllCmd(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := newFlags("bench all", allHelp, stderr)
	o := SuiteOptions{FileSize: 1 << 30, DeviceSize: 8 << 30, Memory: 1 << 30, Progress: stderr, Table: stdout}
	fs.StringVar(&o.Dir, "dir", "./data/bench", "where the files to measure on are made, and removed afterwards")
	fs.StringVar(&o.Out, "out", "bench/results", "where results.json and results.html go")
	fs.StringVar(&o.Peers, "peers", "", "the comparison with other logs: its directory or program; default bench/peers, - for none")
	fs.IntVar(&o.Count, "count", 5, "rounds of each measure")
	fs.DurationVar(&o.Duration, "duration", 2*time.Second, "of each run")
	sizeVar(fs, &o.FileSize, "file-size", "size of the file that fio and the engine share")
	sizeVar(fs, &o.DeviceSize, "device-size", "size of the node's device, a file")
	sizeVar(fs, &o.Memory, "memory", "bound of the node's memory")
	fs.StringVar(&o.IOEngine, "io-engine", "auto", "auto, uring or sync")
	only := fs.String("only", "", "measures to take, such as T1,T4; default all but T11")
	fs.BoolVar(&o.Long, "long", false, "T11 as well: ten minutes of ingest with coalescing")
	asJSON := fs.Bool("json", false, "print the rows as JSON instead of the table")
	if err := parse(fs, args); err != nil {
		return err
	}
	o.Only = pathList(*only)
	if *asJSON {
		o.Table = nil
	}
	rows, err := RunSuite(ctx, o)
	if *asJSON {
		if jerr := printJSON(stdout, rows); err == nil {
			err = jerr
		}
	}
	return err
}
