package archtest

import (
	"fmt"
	"go/ast"
	"go/token"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestFilesAndFunctionsStayShort(t *testing.T) {
	refuse(t, checkLengths(loadModule(t), longOnes))
}

func TestTestsWaitForEventsNotForTime(t *testing.T) {
	refuse(t, checkSleeps(loadModule(t)))
}

func TestProductionCodeIsFinished(t *testing.T) {
	refuse(t, checkMarkers(loadModule(t)))
}

// checkLengths complains about files and production functions over the limits,
// and about exceptions that are not needed.
func checkLengths(files []*source, allowed []exception) []string {
	var bad []string
	needed := make([]bool, len(allowed))
	judge := func(s *source, fn, where string, lines, limit int, cure string) {
		if lines <= limit {
			return
		}
		for i, e := range allowed {
			if e.file == s.path && e.fn == fn {
				needed[i] = true
				limit = e.lines
			}
		}
		if lines > limit {
			bad = append(bad, fmt.Sprintf("%s has %d lines, more than %d: %s", where, lines, limit, cure))
		}
	}
	for _, s := range files {
		judge(s, "", s.path, s.lines(), maxFileLines, "split it by topic into files of the same package")
		if s.test {
			continue
		}
		for _, f := range functions(s) {
			judge(s, f.name, s.at(f.pos)+" "+f.name, f.lines, maxFuncLines, "name its steps and make them functions")
		}
	}
	for i, e := range allowed {
		if !needed[i] {
			bad = append(bad, fmt.Sprintf("the exception for %s %s (%s) is no longer needed: delete its row in ranks_test.go", e.file, e.fn, e.why))
		}
	}
	return bad
}

type function struct {
	name  string // Name, or Receiver.Name
	pos   token.Pos
	lines int
}

// functions lists the declared functions and methods of a file.
func functions(s *source) []function {
	var out []function
	for _, d := range s.file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		name := f.Name.Name
		if f.Recv != nil && len(f.Recv.List) == 1 {
			name = receiver(f.Recv.List[0].Type) + "." + name
		}
		first, last := s.fset.Position(f.Pos()).Line, s.fset.Position(f.End()).Line
		out = append(out, function{name: name, pos: f.Pos(), lines: last - first + 1})
	}
	return out
}

// receiver names the type of a method's receiver.
func receiver(e ast.Expr) string {
	switch x := e.(type) {
	case *ast.StarExpr:
		return receiver(x.X)
	case *ast.IndexExpr:
		return receiver(x.X)
	case *ast.IndexListExpr:
		return receiver(x.X)
	case *ast.Ident:
		return x.Name
	}
	return "?"
}

// checkSleeps complains about time.Sleep in tests. Inside testing/synctest it is
// virtual and exact, so files that import that package may use it.
func checkSleeps(files []*source) []string {
	var bad []string
	for _, s := range files {
		imports := s.imports()
		if _, virtual := imports["testing/synctest"]; virtual || !s.test {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok || sel.Sel.Name != "Sleep" {
				return true
			}
			if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "time" {
				bad = append(bad, s.at(n.Pos())+": time.Sleep in a test: wait for the event itself (a channel, a condition, a poll with a deadline), or run in testing/synctest")
			}
			return true
		})
	}
	return bad
}

// checkPure complains about imports and goroutines in the pure core.
func checkPure(files []*source, core []string) []string {
	var bad []string
	for _, s := range files {
		if s.test || !slices.Contains(core, s.dir) {
			continue
		}
		imports := s.imports()
		for _, no := range impure {
			for imp, pos := range imports {
				if imp == no.path || strings.HasPrefix(imp, no.path+"/") {
					bad = append(bad, fmt.Sprintf("%s imports %s into the pure core: %s", s.at(pos), imp, no.instead))
				}
			}
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if g, ok := n.(*ast.GoStmt); ok {
				bad = append(bad, s.at(g.Pos())+": a goroutine in the pure core: return an effect and let the shell around it run it")
			}
			return true
		})
	}
	return bad
}

var marker = regexp.MustCompile(`\b(TODO|FIXME|XXX)\b`)

// checkMarkers complains about markers of unfinished work in production code.
func checkMarkers(files []*source) []string {
	var bad []string
	for _, s := range files {
		if s.test {
			continue
		}
		n := 0
		for line := range strings.Lines(s.text) {
			n++
			if word := marker.FindString(line); word != "" {
				bad = append(bad, fmt.Sprintf("%s:%d: %s in production code: finish it, or open an issue and state the limit in the package doc", s.path, n, word))
			}
		}
	}
	return bad
}
