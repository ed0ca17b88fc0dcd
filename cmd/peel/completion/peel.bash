# bash completion for peel: all words come from peel itself.

_peel() {
	local line=${COMP_LINE:0:COMP_POINT} cur
	local -a words
	read -ra words <<<"$line"
	[[ $line == *[[:space:]] ]] && words+=("")
	cur=${words[-1]}
	mapfile -t COMPREPLY < <("${words[0]}" complete "${words[@]:1}" 2>/dev/null)

	# Readline takes what stands behind the last colon for the word.
	if [[ $cur == *:* && $COMP_WORDBREAKS == *:* ]]; then
		COMPREPLY=("${COMPREPLY[@]#"${cur%"${cur##*:}"}"}")
	fi
}

complete -o default -F _peel peel
