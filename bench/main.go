package bench

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
)

// A command is one word behind "redoubt bench".
type command struct {
	name, help string
	run        func(ctx context.Context, args []string, stdout, stderr io.Writer) error
}

func commands() []command {
	return []command{
		{"device", "the I/O engine alone: durable appends or random reads on files or devices", DeviceCmd},
		{"append", "writers that append small records to many segments of a node", AppendCmd},
		{"read", "random reads of pages of a node, every byte checked", ReadCmd},
		{"replay", "replay a trace into a volume, read it back, compare the hash", ReplayCmd},
		{"all", "everything against fio and other logs, in turns: a table, JSON, a picture", AllCmd},
	}
}

// Main runs "redoubt bench ARGS" and returns the exit status.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 || args[0] == "help" || args[0] == "-h" || args[0] == "--help" {
		usage(stdout)
		if len(args) == 0 {
			return 2
		}
		return 0
	}
	for _, c := range commands() {
		if c.name != args[0] {
			continue
		}
		err := c.run(ctx, args[1:], stdout, stderr)
		if err == nil || errors.Is(err, flag.ErrHelp) {
			return 0
		}
		fmt.Fprintf(stderr, "redoubt bench %s: %v\n", c.name, err)
		return 1
	}
	fmt.Fprintf(stderr, "redoubt bench: there is no %q\n\n", args[0])
	usage(stderr)
	return 2
}

func usage(w io.Writer) {
	fmt.Fprintf(w, "Measure devices and nodes, replay traces.\n\nUsage: redoubt bench LOAD [FLAGS]\n\n")
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-8s %s\n", c.name, c.help)
	}
	fmt.Fprintf(w, "\nredoubt bench LOAD --help explains the flags; -json prints one JSON object.\n")
}
