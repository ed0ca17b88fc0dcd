package images

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// codename returns the release's name, as "bookworm", from an os-release file.
func codename(osRelease string) (string, error) {
	for line := range strings.Lines(osRelease) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); ok {
			return strings.Trim(name, `"`), nil
		}
	}
	return "", fmt.Errorf("no VERSION_CODENAME in os-release: this takes a released Debian")
}

// debianSources returns those of a machine's apt sources that are Debian's own
// for a release, as the files "debian.list" and "debian.sources" in the two
// formats of sources.list(5). Those with no content are left out.
func debianSources(etcApt, codename string) (map[string]string, error) {
	var list, stanzas []string
	lists, err := filepath.Glob(filepath.Join(etcApt, "sources.list.d", "*.list"))
	if err != nil {
		return nil, err
	}
	for _, path := range append(lists, filepath.Join(etcApt, "sources.list")) {
		text, err := os.ReadFile(path)
		if err != nil && !os.IsNotExist(err) {
			return nil, err
		}
		for line := range strings.Lines(string(text)) {
			if isDebianLine(line, codename) {
				list = append(list, strings.TrimSpace(line)+"\n")
			}
		}
	}
	deb822, err := filepath.Glob(filepath.Join(etcApt, "sources.list.d", "*.sources"))
	if err != nil {
		return nil, err
	}
	for _, path := range deb822 {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		for stanza := range strings.SplitSeq(string(text), "\n\n") {
			if isDebianStanza(stanza, codename) {
				stanzas = append(stanzas, strings.Trim(stanza, "\n")+"\n\n")
			}
		}
	}
	files := map[string]string{}
	if len(list) > 0 {
		files["debian.list"] = strings.Join(list, "")
	}
	if len(stanzas) > 0 {
		files["debian.sources"] = strings.Join(stanzas, "")
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no sources of Debian %s in %s", codename, etcApt)
	}
	return files, nil
}

// isDebianLine is for "deb [options] uri suite component...".
func isDebianLine(line, codename string) bool {
	fields := strings.Fields(line)
	if len(fields) == 0 || fields[0] != "deb" {
		return false
	}
	fields = fields[1:]
	if len(fields) > 0 && strings.HasPrefix(fields[0], "[") {
		end := slices.IndexFunc(fields, func(f string) bool { return strings.HasSuffix(f, "]") })
		fields = fields[end+1:]
	}
	return len(fields) > 2 && isDebian(fields[:1], fields[1:2], fields[2:], codename)
}

// isDebianStanza is for fields such as "Suites: bookworm bookworm-updates".
func isDebianStanza(stanza, codename string) bool {
	fields := map[string][]string{}
	for line := range strings.Lines(stanza) {
		if name, value, ok := strings.Cut(line, ":"); ok && !strings.HasPrefix(line, "#") {
			fields[strings.ToLower(name)] = strings.Fields(value)
		}
	}
	if slices.Equal(fields["enabled"], []string{"no"}) || !slices.Contains(fields["types"], "deb") {
		return false
	}
	return isDebian(fields["uris"], fields["suites"], fields["components"], codename)
}

// isDebian tells Debian's archives, and mirrors of them, from those of others
// who name their suites after Debian's.
func isDebian(uris, suites, components []string, codename string) bool {
	for _, uri := range uris {
		if !strings.Contains(uri, "/debian") {
			return false
		}
	}
	for _, suite := range suites {
		if suite != codename && suite != codename+"-updates" && suite != codename+"-security" {
			return false
		}
	}
	return len(uris) > 0 && len(suites) > 0 && slices.Contains(components, "main")
}
