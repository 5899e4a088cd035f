package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/segfile"
	"github.com/redoubt-storage/redoubt/slab"
)

// deviceReport is what check says of one device.
type deviceReport struct {
	Path     string         `json:"path"`
	Device   string         `json:"device,omitempty"`
	Clean    bool           `json:"clean_shutdown"`
	Segments int            `json:"segments"`
	Runs     int            `json:"log_runs"`
	Blocks   int            `json:"log_blocks"`
	Records  int64          `json:"log_records"`
	Pages    int            `json:"pages"`
	MapPages int            `json:"map_pages"`
	Holes    int            `json:"holes"`
	Notes    []string       `json:"notes,omitempty"`
	Damage   []damageReport `json:"damage,omitempty"`
}

type damageReport struct {
	Offset  int64  `json:"offset"` // on the device, bytes; -1: not at one place
	Segment string `json:"segment,omitempty"`
	What    string `json:"what"`
}

func check(ctx context.Context, args []string) error {
	fs := newFlags("check", "Check the devices of a node that isn't running: superblocks, extent table, every block\n"+
		"of the log, every page. Exit status 1 when something is damaged; the place is named.\n"+
		"Nothing is changed.")
	asJSON := fs.Bool("json", false, "print the report as JSON")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() == 0 {
		return errors.New("name the devices behind the flags")
	}
	var reports []deviceReport
	var supers []blockdev.Superblock
	damaged := 0
	for _, path := range fs.Args() {
		r, sb := checkDevice(path)
		if sb != nil {
			supers = append(supers, *sb)
		}
		reports = append(reports, r)
		damaged += len(r.Damage)
		if !*asJSON {
			r.print()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	set := checkSet(supers)
	if *asJSON {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		if err := enc.Encode(map[string]any{"devices": reports, "damage": damaged, "set": set}); err != nil {
			return err
		}
	} else if set != "" {
		fmt.Println("note:", set)
	}
	if damaged > 0 {
		if !*asJSON {
			fmt.Printf("%d damaged places on %d devices\n", damaged, len(reports))
		}
		return errFailed
	}
	if !*asJSON {
		fmt.Printf("%d devices, no damage\n", len(reports))
	}
	return nil
}

// checkSet says what is odd about the devices together; naming only some of a
// node's devices is no damage.
func checkSet(supers []blockdev.Superblock) string {
	slices.SortFunc(supers, func(a, b blockdev.Superblock) int { return a.Position - b.Position })
	if len(supers) == 0 {
		return ""
	}
	if err := blockdev.CheckSet(supers); err != nil {
		return err.Error()
	}
	return ""
}

func (r *deviceReport) add(off int64, seg redoubt.SegmentID, what error) {
	d := damageReport{Offset: off, What: what.Error()}
	if seg != (redoubt.SegmentID{}) {
		d.Segment = seg.String()
	}
	r.Damage = append(r.Damage, d)
}

// checkDevice reads all of a device.
func checkDevice(path string) (deviceReport, *blockdev.Superblock) {
	r := deviceReport{Path: path}
	dev, err := blockdev.Open(path, blockdev.Options{ReadOnly: true})
	if err != nil {
		r.add(-1, redoubt.SegmentID{}, err)
		return r, nil
	}
	defer dev.Close()
	sb := dev.Super()
	r.Device, r.Clean = sb.Device.String(), sb.Clean != 0
	table, err := dev.CheckTable()
	if err != nil {
		r.add(-1, redoubt.SegmentID{}, err)
	}
	for _, d := range table {
		if d.Harmless {
			r.Notes = append(r.Notes, d.String())
			continue
		}
		r.add(d.Off, redoubt.SegmentID{}, fmt.Errorf("%s", d))
	}
	if err := r.checkStore(dev); err != nil {
		r.add(-1, redoubt.SegmentID{}, err)
	}
	return r, &sb
}

// checkStore reads the log and every page.
func (r *deviceReport) checkStore(dev *blockdev.Device) error {
	store, free, err := openReadOnly(dev)
	if err != nil {
		return err
	}
	defer free()
	show := progress(r.Path)
	rep, err := store.Check(func(done, total int) { show(int64(done), int64(total)) })
	if err != nil {
		return err
	}
	show(1, 1)
	r.Segments, r.Pages, r.MapPages, r.Records = len(rep.Segments), rep.Pages, rep.MapPages, rep.Records
	r.Runs, r.Blocks, r.Holes = rep.Recovery.Runs, rep.Recovery.Blocks, len(rep.Recovery.Holes)
	for _, h := range rep.Recovery.Holes {
		if h.Class == segfile.Torn {
			r.Notes = append(r.Notes, fmt.Sprintf("log positions [%d, %d): torn, never known to be acknowledged", h.From, h.To))
		}
	}
	for _, g := range rep.Gaps {
		r.Notes = append(r.Notes, fmt.Sprintf("segment %v: a gap above LSN %d: records in (%d, %d] are here, those before them never came or were torn", g.Segment, g.Above, g.From, g.To))
	}
	for _, d := range rep.Damage {
		r.add(d.Offset, d.Segment, d.Err)
	}
	return nil
}

// openReadOnly opens the store of a device for inspection.
func openReadOnly(dev *blockdev.Device) (*segfile.Store, func(), error) {
	small, err := slab.New(slab.Options{Name: "small", Size: 64 << 10, Count: 4})
	if err != nil {
		return nil, nil, err
	}
	windows, err := slab.New(slab.Options{Name: "windows", Size: 512 << 10, Count: 8})
	if err != nil {
		_ = small.Close()
		return nil, nil, err
	}
	free := func() {
		_ = small.Close()
		_ = windows.Close()
	}
	store, err := segfile.Open(dev, segfile.Options{Device: dev.Super().Device, Small: small, Windows: windows, ReadOnly: true,
		MaxPages: 1 << 40}, dev.Super().Clean)
	if err != nil {
		free()
		return nil, nil, err
	}
	return store, free, nil
}

func (r *deviceReport) print() {
	shutdown := "clean shutdown"
	if !r.Clean {
		shutdown = "no clean shutdown"
	}
	fmt.Printf("%s: device %s, %s, %d segments, %d pages, %d runs and %d blocks of log with %d live records\n",
		r.Path, r.Device, shutdown, r.Segments, r.Pages, r.Runs, r.Blocks, r.Records)
	for _, n := range r.Notes {
		fmt.Printf("  note: %s\n", n)
	}
	for _, d := range r.Damage {
		if d.Offset >= 0 {
			fmt.Printf("  DAMAGE at byte %d: %s\n", d.Offset, d.What)
		} else {
			fmt.Printf("  DAMAGE: %s\n", d.What)
		}
	}
}
