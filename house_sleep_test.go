package damselfly_test

import (
	"go/ast"
	"slices"
)

// noSleep refuses time.Sleep in tests, except where it runs in a bubble of
// testing/synctest, in which it takes no time.
func noSleep(tree []source) []breach {
	byFolder := map[string][]source{}
	for _, s := range tree {
		if s.test {
			byFolder[s.pkg] = append(byFolder[s.pkg], s)
		}
	}
	bubbles := map[string][]ast.Node{} // by file
	for _, files := range byFolder {
		findBubbles(files, bubbles)
	}
	waits := func(s source) bool { return s.test || within(s.pkg, "e2e") && !within(s.pkg, "e2e/demo") }
	return eachNode(tree, waits, func(s source, n ast.Node) string {
		inside := func(b ast.Node) bool { return b.Pos() <= n.Pos() && n.End() <= b.End() }
		if s.selected(n, "time") == "Sleep" && !slices.ContainsFunc(bubbles[s.name], inside) {
			return "time.Sleep is used"
		}
		return ""
	})
}

// findBubbles adds to bubbles the code of one folder that runs in a bubble: what
// is passed to synctest.Test, or to a function that calls it, and the functions
// that are named in such code.
func findBubbles(files []source, bubbles map[string][]ast.Node) {
	type place struct {
		file source
		node ast.Node
	}
	functions, runners := map[string][]place{}, map[string]bool{}
	isBubble := func(s source, call *ast.CallExpr) bool {
		name, plain := call.Fun.(*ast.Ident)
		return s.selected(call.Fun, "testing/synctest") == "Test" || plain && runners[name.Name]
	}
	var todo []place
	for _, s := range files {
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Body == nil {
				continue
			}
			functions[f.Name.Name] = append(functions[f.Name.Name], place{s, f.Body})
			eachCall(f.Body, func(call *ast.CallExpr) { runners[f.Name.Name] = runners[f.Name.Name] || isBubble(s, call) })
		}
	}
	for _, s := range files {
		eachCall(s.file, func(call *ast.CallExpr) {
			if isBubble(s, call) {
				for _, argument := range call.Args {
					todo = append(todo, place{s, argument})
				}
			}
		})
	}
	done := map[string]bool{}
	for len(todo) > 0 {
		p := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		bubbles[p.file.name] = append(bubbles[p.file.name], p.node)
		ast.Inspect(p.node, func(n ast.Node) bool {
			if name, ok := n.(*ast.Ident); ok && !done[name.Name] {
				done[name.Name] = true
				todo = append(todo, functions[name.Name]...)
			}
			return true
		})
	}
}

func eachCall(in ast.Node, visit func(*ast.CallExpr)) {
	ast.Inspect(in, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			visit(call)
		}
		return true
	})
}
