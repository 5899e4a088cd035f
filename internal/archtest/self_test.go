package archtest

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"
)

// Each rule is shown a small tree that breaks it and one that does not: a rule
// that sees nothing passes every tree.

// tree parses a module made of the given files.
func tree(t *testing.T, files map[string]string) []*source {
	t.Helper()
	m := make(fstest.MapFS)
	for p, text := range files {
		m[p] = &fstest.MapFile{Data: []byte(text)}
	}
	out, err := load(m)
	if err != nil {
		t.Fatal(err)
	}
	if len(out) != len(files) {
		t.Fatalf("loaded %d of %d files", len(out), len(files))
	}
	return out
}

// importing is a file of the named package that imports the given paths.
func importing(pkg string, paths ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "package %s\n", pkg)
	for _, p := range paths {
		fmt.Fprintf(&b, "import _ %q\n", p)
	}
	return b.String()
}

// wantOne asserts that there is one complaint and that it has all the words.
func wantOne(t *testing.T, complaints []string, words ...string) {
	t.Helper()
	if len(complaints) != 1 {
		t.Fatalf("want one complaint, got %d: %q", len(complaints), complaints)
	}
	for _, w := range words {
		if !strings.Contains(complaints[0], w) {
			t.Errorf("complaint %q lacks %q", complaints[0], w)
		}
	}
}

func TestRanksRefuseWhatTheyForbid(t *testing.T) {
	cases := []struct {
		name, file, imports string
		words               []string // none: allowed
	}{
		{"downward", "segfile/a.go", module + "/redo", nil},
		{"the root", "redo/a.go", module, nil},
		{"upward", "redo/a.go", module + "/segfile", []string{"upward", "redo/a.go:2", "interface"}},
		{"upward from a test", "redo/a_test.go", module + "/segfile", []string{"upward"}},
		{"sideways", "logqueue/a.go", module + "/netserver", []string{"sideways", "strangers"}},
		{"sideways from a test", "logqueue/a_test.go", module + "/netserver", []string{"sideways"}},
		{"a helper from a test of its rank", "wire/a_test.go", module + "/blockdev/devtest", nil},
		{"a helper from a test above", "node/a_test.go", module + "/blockdev/devtest", nil},
		{"a helper from production", "node/a.go", module + "/blockdev/devtest", []string{"test helper", "move"}},
		{"a helper of its parent", "ioring/enginetest/a.go", module + "/ioring", nil},
		{"a helper of a stranger", "ioring/enginetest/a.go", module + "/slab", []string{"sideways"}},
		{"itself, from an external test", "redo/a_test.go", module + "/redo", nil},
		{"nowhere", "redo/a.go", module + "/drawer", []string{"no rank", "drawer"}},
		{"from nowhere", "drawer/a.go", "fmt", []string{"drawer", "no rank", "ranks_test.go"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := checkRanks(tree(t, map[string]string{c.file: importing("p", c.imports)}), ranks)
			if c.words == nil {
				refuse(t, got)
				return
			}
			wantOne(t, got, c.words...)
		})
	}
}

func TestDependenciesAreRefusedOutsideTheirPlace(t *testing.T) {
	cases := []struct {
		name, file, imports string
		words               []string
	}{
		{"the ring in ioring", "ioring/a.go", "github.com/pawelgaczynski/giouring", nil},
		{"the ring elsewhere", "node/a.go", "github.com/pawelgaczynski/giouring", []string{"ioring only"}},
		{"a test library in a test", "node/a_test.go", "pgregory.net/rapid", nil},
		{"a test library in a helper", "ioring/enginetest/a.go", "pgregory.net/rapid", nil},
		{"a test library in production", "node/a.go", "pgregory.net/rapid", []string{"tests only"}},
		{"a package below a module", "node/a.go", "golang.org/x/sys/unix", nil},
		{"system calls in the pure core", "redo/a.go", "golang.org/x/sys/unix", []string{"pure core"}},
		{"a stranger", "node/a.go", "example.com/kitchen/sink", []string{"not on the list"}},
		{"the standard library", "node/a.go", "net/http", nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := checkDependencies(tree(t, map[string]string{c.file: importing("p", c.imports)}), dependencies)
			if c.words == nil {
				refuse(t, got)
				return
			}
			wantOne(t, got, c.words...)
		})
	}
}

func TestPureCoreRefusesEachImpurity(t *testing.T) {
	for _, imp := range []string{"time", "os", "os/exec", "net", "net/netip", "math/rand", "math/rand/v2", "crypto/rand"} {
		wantOne(t, checkPure(tree(t, map[string]string{"redo/a.go": importing("redo", imp)}), pureCore), imp, "pure core")
		refuse(t, checkPure(tree(t, map[string]string{"redo/a_test.go": importing("redo", imp), "node/a.go": importing("node", imp)}), pureCore))
	}
	text := "package segfile\nfunc f() {\n\tgo f()\n}\n"
	wantOne(t, checkPure(tree(t, map[string]string{"segfile/a.go": text}), pureCore), "segfile/a.go:3", "goroutine")
	refuse(t, checkPure(tree(t, map[string]string{"redo/a.go": importing("redo", "timeless", "math/bits")}), pureCore))
}

func TestLimitsCountLinesAndForgetNoException(t *testing.T) {
	body := func(n int) string {
		return "package p\nfunc (x *T[K]) f() {\n" + strings.Repeat("\t_ = 1\n", n-2) + "}\n"
	}
	atLimit := map[string]string{"redo/a.go": body(maxFuncLines), "redo/a_test.go": body(maxFuncLines + 1)}
	refuse(t, checkLengths(tree(t, atLimit), nil))

	over := tree(t, map[string]string{"redo/a.go": body(maxFuncLines + 1)})
	wantOne(t, checkLengths(over, nil), "redo/a.go:2 T.f", "71 lines")
	refuse(t, checkLengths(over, []exception{{file: "redo/a.go", fn: "T.f", lines: maxFuncLines + 1}}))

	long := tree(t, map[string]string{"redo/a_test.go": "package p\n" + strings.Repeat("//\n", maxFileLines)})
	wantOne(t, checkLengths(long, nil), "redo/a_test.go", "501 lines", "split")
	wantOne(t, checkLengths(tree(t, atLimit), []exception{{file: "redo/a.go", fn: "T.f", lines: 80}}), "no longer needed")
}

func TestSleepIsSeenInTestsOnly(t *testing.T) {
	text := "package p\nimport \"time\"\nfunc f() { time.Sleep(1) }\n"
	wantOne(t, checkSleeps(tree(t, map[string]string{"redo/a_test.go": text})), "redo/a_test.go:3", "synctest")
	refuse(t, checkSleeps(tree(t, map[string]string{
		"redo/a.go":      text,
		"redo/b_test.go": strings.Replace(text, "import", "import _ \"testing/synctest\"\nimport", 1),
	})))
}

func TestMarkersAreSeenInProductionOnly(t *testing.T) {
	for _, word := range []string{"TODO", "FIXME", "XXX"} {
		text := "package p\n\n// " + word + ": later\n"
		wantOne(t, checkMarkers(tree(t, map[string]string{"redo/a.go": text})), "redo/a.go:3", word)
		refuse(t, checkMarkers(tree(t, map[string]string{"redo/a_test.go": text, "redo/b.go": "package p // XXXL\n"})))
	}
}
