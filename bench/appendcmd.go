package bench

import (
	"context"
	"flag"
	"fmt"
	"io"
	"time"
)

const appendHelp = `Append small records to many segments of a node. Each of -writers logical writers
waits for the ack of its own record before it sends the next; with -batch the
segments are fed with batches of so many records instead, -window of them
without an ack. The segments are made for this and deleted at the end.

  redoubt bench append -node 127.0.0.1:7420 -segments 64 -writers 256 -record-size 128 -duration 5s -json
  redoubt bench append -node 127.0.0.1:7420 -batch 256 -segments 8 -connections 4
  redoubt bench append -node 127.0.0.1:7420 -batch 32 -rate 1000000

With -rate each send is due at a fixed moment, from which its latency counts,
whether or not a writer was free.

JSON: ops_per_s, bytes_per_s (of payload), p50_us, p99_us, p999_us, cpu_us_per_op,
cpu_of (whose CPU that is: the node's if its metrics can be had), errors,
records_per_s, device_bytes_per_record, log_bytes_per_record, and minutes: p50,
p99 and rate of each complete minute.`

// loadFlags are the flags that every load on a node has.
func loadFlags(fs *flag.FlagSet, node, nodeHTTP *string, asJSON *bool) {
	fs.StringVar(node, "node", "127.0.0.1:7420", "address of the node")
	fs.StringVar(nodeHTTP, "node-http", "", "address of its metrics; default the port after the node's, - for none")
	fs.BoolVar(asJSON, "json", false, "print the result as one JSON object")
}

// AppendCmd is "redoubt bench append".
func AppendCmd(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := newFlags("bench append", appendHelp, stderr)
	var o AppendOptions
	var asJSON bool
	loadFlags(fs, &o.Node, &o.NodeHTTP, &asJSON)
	o.PGSize = 64 << 20
	fs.IntVar(&o.Segments, "segments", 64, "segments to write to")
	fs.IntVar(&o.Writers, "writers", 256, "logical writers, each waiting for its own ack")
	fs.IntVar(&o.Batch, "batch", 0, "records of a batch; writers don't wait then (0: they do)")
	fs.IntVar(&o.Window, "window", 4, "with -batch: batches of a segment in flight")
	fs.IntVar(&o.RecordSize, "record-size", 128, "bytes of a record's payload")
	fs.Float64Var(&o.Rate, "rate", 0, "records a second in all; 0: no bound")
	fs.DurationVar(&o.Duration, "duration", 5*time.Second, "how long")
	fs.IntVar(&o.Connections, "connections", 1, "connections that share the segments")
	sizeVar(fs, &o.PGSize, "pg-size", "size of a segment")
	fs.IntVar(&o.Pages, "pages", 0, "pages of each segment that are written again and again; default 1024, or all if there are fewer")
	fs.StringVar(&o.Pattern, "pattern", Sequential, "sequential: page after page is filled; random: anywhere")
	if err := parse(fs, args); err != nil {
		return err
	}
	o.Progress = NewProgress(stderr, "append")
	res, err := RunAppend(ctx, o)
	if asJSON {
		if jerr := printJSON(stdout, res); err == nil {
			err = jerr
		}
		return err
	}
	if res.Ops > 0 {
		printAppend(stdout, res)
	}
	return err
}

func printAppend(w io.Writer, r AppendResult) {
	fmt.Fprintf(w, "records    %.0f/s, %s/s of payload, %d in %.1f s, %d errors\n", r.RecordsPerS, sizeText(r.BytesPerS), r.Records, r.ElapsedS, r.Errors)
	fmt.Fprintf(w, "latency    p50 %.0f us, p99 %.0f us, p99.9 %.0f us, max %.0f us\n", r.P50us, r.P99us, r.P999us, r.MaxUs)
	fmt.Fprintf(w, "CPU        %.2f us a record, of %s\n", r.CPUusPerRecord, r.CPUOf)
	if r.DeviceBytesPerRecord > 0 {
		fmt.Fprintf(w, "devices    %.0f bytes a record, %.0f of them log\n", r.DeviceBytesPerRecord, r.LogBytesPerRecord)
	}
	for i, m := range r.Minutes {
		fmt.Fprintf(w, "minute %-3d %.0f records/s, p50 %.0f us, p99 %.0f us\n", i+1, m.RecordsPerS, m.P50us, m.P99us)
	}
}

// sizeText prints a number of bytes for people.
func sizeText(n float64) string {
	for _, u := range sizeUnits {
		if n >= float64(u.n) {
			return fmt.Sprintf("%.1f %s", n/float64(u.n), u.name)
		}
	}
	return fmt.Sprintf("%.0f bytes", n)
}
