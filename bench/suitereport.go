package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// A SuiteReport is what results.json holds.
type SuiteReport struct {
	Taken    time.Time     `json:"taken"`
	Took     float64       `json:"took_s"`
	Machine  SuiteMachine  `json:"machine"`
	Settings SuiteSettings `json:"settings"`
	Rows     []Row         `json:"rows"`
}

// SuiteMachine says what the figures were taken on.
type SuiteMachine struct {
	CPUs   int    `json:"cpus"`
	CPU    string `json:"cpu"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
	Fio    string `json:"fio"`
}

// SuiteSettings says how.
type SuiteSettings struct {
	Rounds     int     `json:"rounds"`
	DurationS  float64 `json:"duration_s"`
	FileSize   int64   `json:"file_size"`
	DeviceSize int64   `json:"device_size"`
	Memory     int64   `json:"memory"`
	IOEngine   string  `json:"io_engine"`
	LogShare   string  `json:"log_share"`
}

// report prints the table and writes both files.
func (s *suite) report(rows []Row) error {
	r := SuiteReport{Taken: s.started.UTC().Truncate(time.Second), Took: time.Since(s.started).Seconds(), Machine: thisMachine(), Rows: rows,
		Settings: SuiteSettings{Rounds: s.Count, DurationS: s.Duration.Seconds(), FileSize: s.FileSize, DeviceSize: s.DeviceSize, Memory: s.Memory, IOEngine: s.IOEngine, LogShare: suiteLogShare}}
	if s.Table != nil {
		r.table(s.Table)
	}
	if err := os.MkdirAll(s.Out, 0o755); err != nil {
		return fmt.Errorf("bench: results: %w", err)
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("bench: results: %w", err)
	}
	if err := os.WriteFile(filepath.Join(s.Out, "results.json"), append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("bench: results: %w", err)
	}
	f, err := os.Create(filepath.Join(s.Out, "results.html"))
	if err != nil {
		return fmt.Errorf("bench: results: %w", err)
	}
	if err := errors.Join(r.picture(f), f.Close()); err != nil {
		return fmt.Errorf("bench: results: %w", err)
	}
	return nil
}

func thisMachine() SuiteMachine {
	m := SuiteMachine{CPUs: runtime.NumCPU(), Go: runtime.Version(), CPU: "unknown", Fio: "none"}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if k, v, _ := strings.Cut(line, ":"); strings.TrimSpace(k) == "model name" {
				m.CPU = strings.TrimSpace(v)
				break
			}
		}
	}
	if out, err := exec.Command("fio", "--version").Output(); err == nil {
		m.Fio = strings.TrimSpace(string(out))
	}
	return m
}

// bound prints must or aim.
func (r *Row) bound(v float64) string {
	sign := ">="
	if r.Lower {
		sign = "<="
	}
	switch {
	case r.Unit == "x":
		return fmt.Sprintf("%s %.4g x", sign, v)
	case v >= 1e6:
		return fmt.Sprintf("%s %.4g M %s", sign, v/1e6, r.Unit)
	}
	return fmt.Sprintf("%s %.4g %s", sign, v, r.Unit)
}

// text prints the median of a side.
func (s *Side) text() string {
	if s == nil {
		return "-"
	}
	switch v := s.Median; {
	case s.Unit == "bytes/s" || s.Unit == "bytes" && v >= 1<<20:
		return sizeText(v) + strings.TrimPrefix(s.Unit, "bytes")
	case v >= 1000:
		return fmt.Sprintf("%.0f %s", v, s.Unit)
	default:
		return fmt.Sprintf("%.2f %s", v, s.Unit)
	}
}

// table prints the rows for people.
func (r *SuiteReport) table(w io.Writer) {
	fmt.Fprintf(w, "\n%d CPUs (%s), Linux %s, %s, %s; medians of %d rounds of %.1f s, contestants in turns\n\n",
		r.Machine.CPUs, r.Machine.CPU, r.Machine.Kernel, r.Machine.Go, r.Machine.Fio, r.Settings.Rounds, r.Settings.DurationS)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "#\tmust\taim\tfigure\tverdict\tours\tagainst\twhat")
	for i := range r.Rows {
		x := &r.Rows[i]
		if x.Verdict == verdictFailed {
			fmt.Fprintf(t, "%s\t\t\t\t%s\t\t\t%s\n", x.ID, x.Verdict, x.Note)
			continue
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", x.ID, x.bound(x.Must), x.bound(x.Aim), x.figure(), x.Verdict, x.Ours.text(), x.Against.text(), x.What)
	}
	t.Flush() // into w, whose errors are whose it is
	for i := range r.Rows {
		if x := &r.Rows[i]; x.Note != "" && x.Verdict != verdictFailed {
			fmt.Fprintf(w, "%s  %s: %s\n", x.ID, x.What, x.Note)
		}
	}
}

// A bar is a row in the picture: how far it is on the way to its must (1) and to
// its aim, whichever way is better.
type bar struct {
	Row
	Y               int
	Width, AimAt    float64
	FigureText      string
	OursText, Other string
	Bounds          string
}

// The picture's scale, in pixels: must is at one unit.
const (
	barLeft  = 90
	barUnit  = 260
	barLimit = 2.6 // units that fit
	rowStep  = 34
)

// picture writes the page with the picture.
func (r *SuiteReport) picture(w io.Writer) error {
	var bars []bar
	for i := range r.Rows {
		x := r.Rows[i]
		b := bar{Row: x, Y: 30 + i*rowStep}
		if x.Verdict != verdictFailed {
			b.Width, b.AimAt = barUnit*score(x.Figure, x.Must, x.Lower), barLeft+barUnit*score(x.Aim, x.Must, x.Lower)
			b.FigureText, b.Bounds = x.figure(), "must "+x.bound(x.Must)+", aim "+x.bound(x.Aim)
			b.OursText, b.Other = x.Ours.text(), x.Against.text()
		}
		bars = append(bars, b)
	}
	data := struct {
		*SuiteReport
		Bars           []bar
		Height, MustAt int
		Left           int
	}{r, bars, 40 + len(bars)*rowStep, barLeft + barUnit, barLeft}
	if err := page.Execute(w, data); err != nil {
		return fmt.Errorf("the picture: %w", err)
	}
	return nil
}

// score is 1 at must, and more is better.
func score(figure, must float64, lower bool) float64 {
	if lower {
		figure, must = must, figure
	}
	if must == 0 {
		return barLimit
	}
	return min(figure/must, barLimit)
}

// page is one file without anything from elsewhere.
var page = template.Must(template.New("results").Parse(`<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Redoubt: measured</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; color: #222; background: #fff; padding: 0 1em }
table { border-collapse: collapse; width: 100%; margin-top: 1.5em } td, th { text-align: left; padding: .3em .6em; border-bottom: 1px solid #ddd; vertical-align: top }
.aim { fill: #2a7d4f; color: #2a7d4f } .must { fill: #3b6ea8; color: #3b6ea8 } .MISSED, .FAILED { fill: #b3402e; color: #b3402e }
small { color: #666 } svg text { font-size: 13px }
@media (prefers-color-scheme: dark) { body { background: #16181c; color: #ddd } td, th { border-color: #333 } svg text { fill: #ddd } small { color: #999 } }
</style></head><body>
<h1>Redoubt, measured</h1>
<p>{{.Taken.Format "2006-01-02 15:04 MST"}}, {{.Machine.CPUs}} CPUs ({{.Machine.CPU}}), Linux {{.Machine.Kernel}}, {{.Machine.Go}}, {{.Machine.Fio}}.
Medians of {{.Settings.Rounds}} rounds of {{printf "%.1f" .Settings.DurationS}} s; all contestants of a measure take turns in each round. The figure is the median of the rounds' ratios.</p>
<svg viewBox="0 0 1000 {{.Height}}" role="img" aria-label="each measure against its bounds">
<line x1="{{.MustAt}}" y1="12" x2="{{.MustAt}}" y2="{{.Height}}" stroke="#888" stroke-dasharray="4 3"/><text x="{{.MustAt}}" y="11" text-anchor="middle">must</text>
{{range .Bars}}<text x="0" y="{{.Y}}" dy="15">{{.ID}}</text>
{{if .FigureText}}<rect class="{{.Verdict}}" x="{{$.Left}}" y="{{.Y}}" width="{{printf "%.1f" .Width}}" height="20" rx="3"><title>{{.What}}: {{.FigureText}}; {{.Bounds}}</title></rect>
<path d="M{{printf "%.1f" .AimAt}} {{.Y}} v20" stroke="#111" stroke-width="2"/>
<text x="{{$.Left}}" dx="6" y="{{.Y}}" dy="15" style="fill:#fff">{{.FigureText}}</text>{{else}}<text class="{{.Verdict}}" x="{{$.Left}}" y="{{.Y}}" dy="15">{{.Verdict}}</text>{{end}}
{{end}}</svg>
<p><small>Longer is better. The dashed line is what must be reached, the black mark on each bar what is aimed at.</small></p>
<table><tr><th>#</th><th>what</th><th>bounds</th><th>figure</th><th>ours</th><th>against</th><th>verdict</th></tr>
{{range .Bars}}<tr><td>{{.ID}}</td><td>{{.What}}{{if .Note}}<br><small>{{.Note}}</small>{{end}}</td><td>{{.Bounds}}</td><td>{{.FigureText}}</td>
<td>{{.OursText}}{{with .Ours}}<br><small>{{.Name}}</small>{{end}}</td><td>{{.Other}}{{with .Against}}<br><small>{{.Name}}</small>{{end}}</td><td class="{{.Verdict}}">{{.Verdict}}</td></tr>
{{end}}</table>
<p><small>redoubt bench all reproduces this; the raw rounds are in results.json.</small></p>
</body></html>
`))
