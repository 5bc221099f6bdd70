from gradlab.objectives import document

print(document(), end="")
