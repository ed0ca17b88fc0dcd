package images

import (
	"context"
	"embed"
	"io/fs"
	"os"
	"path/filepath"
)

// Ready is how a line starts that the programs of the images print, each as
// soon as it has done what it is there for. More is on the same line.
const Ready = "ready:"

// Programs returns what makes the images of real programs, which all have the
// base in common. Each image runs its program without an argument.
func Programs() []func(context.Context) (*Image, error) {
	return []func(context.Context) (*Image, error){Python, Postgres, Java, Nginx, Node, GCC}
}

// Program is the command in the Python image that a container would run.
var Program = []string{"/usr/bin/python3", "/app/main.py"}

// Python returns an image in four layers: the base system, Python, two large
// libraries, and a small program that also leaves in the file system what is
// rare in packages.
func Python(ctx context.Context) (*Image, error) {
	return onDebian(ctx, "python", Program,
		install("python3"),
		install("python3-django", "python3-numpy"),
		together(app("python"), addOddities),
	)
}

// Postgres returns an image that makes a database and answers a query from it.
func Postgres(ctx context.Context) (*Image, error) {
	// A database of the image's own would only be in the way.
	none := file("etc/postgresql-common/createcluster.conf", "create_main_cluster = false\n")
	return onDebian(ctx, "postgres", []string{"/app/main.sh"},
		together(install("postgresql-common"), none),
		install("postgresql"),
		app("postgres"),
	)
}

// Java returns an image with OpenJDK, and a class that serves a request.
func Java(ctx context.Context) (*Image, error) {
	return onDebian(ctx, "java", []string{"/usr/bin/java", "-cp", "/app", "Main"},
		install("default-jre-headless"),
		install("default-jdk-headless"),
		together(app("java"), inside("javac", "/app/Main.java")),
	)
}

// Nginx returns an image of the web server, which serves a request.
func Nginx(ctx context.Context) (*Image, error) {
	return onDebian(ctx, "nginx", []string{"/app/main.sh"}, install("nginx"), app("nginx"))
}

// Node returns an image with Node.js, and a script that serves a request.
func Node(ctx context.Context) (*Image, error) {
	return onDebian(ctx, "node", []string{"/usr/bin/node", "/app/main.js"}, install("nodejs"), app("node"))
}

// GCC returns an image with the compiler, which compiles a program and runs it.
func GCC(ctx context.Context) (*Image, error) {
	return onDebian(ctx, "gcc", []string{"/app/main.sh"},
		install("binutils", "libc6-dev"),
		install("gcc"),
		app("gcc"),
	)
}

//go:embed programs
var programs embed.FS

// app returns the change that adds a folder of programs, as /app.
func app(name string) change {
	return func(_ context.Context, root string) error {
		dir := "programs/" + name
		files, err := programs.ReadDir(dir)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Join(root, "app"), 0o755); err != nil {
			return err
		}
		for _, f := range files {
			text, err := fs.ReadFile(programs, dir+"/"+f.Name())
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(root, "app", f.Name()), text, 0o755); err != nil {
				return err
			}
		}
		return nil
	}
}
