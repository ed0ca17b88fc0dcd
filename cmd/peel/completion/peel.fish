# fish completion for peel: all words come from peel itself.

function __peel_words
	set -l words (commandline -opc)
	set -l found ($words[1] complete $words[2..-1] (commandline -ct) 2>/dev/null)
	if test (count $found) -gt 0
		printf '%s\n' $found
	else
		__fish_complete_path (commandline -ct)
	end
end

complete -c peel -f -a '(__peel_words)'
