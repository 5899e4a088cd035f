package archtest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestPackagesImportLowerRanksOnly(t *testing.T) {
	refuse(t, checkRanks(loadModule(t), ranks))
}

func TestThirdPartyModulesStayWhereTheyAreAllowed(t *testing.T) {
	refuse(t, checkDependencies(loadModule(t), dependencies))
}

func TestPureCoreHasNoClockSystemOrGoroutine(t *testing.T) {
	refuse(t, checkPure(loadModule(t), pureCore))
}

// The linter's rules repeat the table for people whose editor runs it, so both
// must name the same packages.
func TestLinterConfigurationKnowsEveryRankedPackage(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(moduleRoot(t), ".golangci.yml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range ranks {
		if p.rank == 0 {
			continue // everybody may import it
		}
		if want := fmt.Sprintf("pkg: %q", module+"/"+p.path+"$"); !strings.Contains(string(text), want) {
			t.Errorf(".golangci.yml denies %s to nobody; add it to the depguard list of rank %d", p.path, p.rank)
		}
	}
}

// checkRanks complains about packages without a place in the table and about
// imports that the ranks forbid.
func checkRanks(files []*source, table []place) []string {
	places := make(map[string]place, len(table))
	for _, p := range table {
		places[p.path] = p
	}
	var bad []string
	unranked := make(map[string]bool)
	for _, s := range files {
		from, ok := places[s.dir]
		if !ok {
			if !unranked[s.dir] {
				unranked[s.dir] = true
				bad = append(bad, fmt.Sprintf("package %s has no rank: decide where it belongs and add its row to internal/archtest/ranks_test.go", s.dir))
			}
			continue
		}
		bad = append(bad, checkImports(s, from, places)...)
	}
	return bad
}

func checkImports(s *source, from place, places map[string]place) []string {
	var bad []string
	for imp, pos := range s.imports() {
		rel, ours := ownPath(imp)
		if !ours || rel == s.dir {
			continue
		}
		to, ok := places[rel]
		if !ok {
			bad = append(bad, fmt.Sprintf("%s imports %s, which has no rank: add its row to internal/archtest/ranks_test.go", s.at(pos), rel))
			continue
		}
		if why := forbidden(s.test, from, to); why != "" {
			bad = append(bad, fmt.Sprintf("%s: rank %d (%s) imports rank %d (%s): %s", s.at(pos), from.rank, from.path, to.rank, to.path, why))
		}
	}
	slices.Sort(bad)
	return bad
}

// forbidden says what to do instead of this import, or nothing if it is allowed.
func forbidden(test bool, from, to place) string {
	switch {
	case to.rank > from.rank:
		return "upward; declare the one- or two-method interface that you need, and let the higher rank hand it over"
	case to.helper && !test && !from.helper:
		return "a test helper in production; move what you need into the package that it helps"
	case to.rank < from.rank, test && (to.helper || meets(from.path, to.path)), from.helper && strings.HasPrefix(from.path, to.path+"/"):
		return ""
	}
	return "sideways; packages of one rank are strangers: declare an interface here and let the rank above wire it up"
}

// ownPath cuts the module's path off an import path.
func ownPath(imp string) (string, bool) {
	if imp == module {
		return "", true
	}
	return strings.CutPrefix(imp, module+"/")
}

// checkDependencies complains about modules that are not on the list and about
// those that are used where they may not be.
func checkDependencies(files []*source, list []dependency) []string {
	var bad []string
	for _, s := range files {
		for imp, pos := range s.imports() {
			_, ours := ownPath(imp)
			domain, _, _ := strings.Cut(imp, "/")
			if ours || !strings.Contains(domain, ".") {
				continue
			}
			if why := unwelcome(s, imp, list); why != "" {
				bad = append(bad, fmt.Sprintf("%s imports %s: %s", s.at(pos), imp, why))
			}
		}
	}
	slices.Sort(bad)
	return bad
}

func unwelcome(s *source, imp string, list []dependency) string {
	i := slices.IndexFunc(list, func(d dependency) bool { return imp == d.path || strings.HasPrefix(imp, d.path+"/") })
	if i < 0 {
		return "not on the list; write the few lines yourself, or add the module to internal/archtest/ranks_test.go with a reason"
	}
	d := list[i]
	helper := slices.ContainsFunc(ranks, func(p place) bool { return p.path == s.dir && p.helper })
	switch {
	case d.tests && !s.test && !helper:
		return "for tests only; keep it in _test.go files and test helpers"
	case d.only != nil && !s.test && !slices.Contains(d.only, s.dir):
		return fmt.Sprintf("for %s only (%s); use what that package exports", strings.Join(d.only, ", "), d.why)
	case d.only == nil && !d.tests && !s.test && slices.Contains(pureCore, s.dir):
		return "not in the pure core; let the shell around it do this"
	}
	return ""
}
